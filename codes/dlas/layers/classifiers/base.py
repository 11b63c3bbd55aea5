"""What the extractors have in common: the scale of their inputs, and stopping at the last layer that is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """The front part of a classifier, up to the last layer that is wanted. Its weights are random until loaded.

    Args:
        layers: names of the layers whose outputs are wanted, among `names()`.

    Attributes:
        title: how it is called in messages.

    Raises:
        ValueError: there is no such layer, or none was named.
    """

    title: ClassVar[str]
    mean: Tensor
    deviation: Tensor

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        known = self.names()
        unknown = [layer for layer in layers if layer not in known]
        if unknown or not layers:
            said = f"has no layer '{unknown[0]}'" if unknown else "needs at least one layer"
            raise ValueError(f"{self.title} {said}; its layers: {', '.join(known)}")
        self.layers = frozenset(layers)
        self.depth = max(known.index(layer) for layer in layers) + 1
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)

    @classmethod
    def names(cls) -> list[str]:
        """Layers whose outputs can be had, in order."""
        raise NotImplementedError

    def stages(self) -> Iterable[tuple[str, nn.Module]]:
        """The layers in order, up to the last one that is wanted. Those before it must not change their input in place."""
        raise NotImplementedError

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / deviation of ImageNet, per channel; x is RGB in [0, 1]."""
        return (x - self.mean) / self.deviation

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features by layer.

        Args:
            x: (B, 3, H, W), already normalised; (B, 1, H, W) stands for three equal channels.
        """
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        found = {}
        for name, stage in self.stages():
            x = stage(x)
            if name in self.layers:
                found[name] = x
        return found
