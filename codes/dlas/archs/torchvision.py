"""torchvision's classifiers, by their names there.

Marcel et al., "Torchvision the machine-vision package of torch", ACM Multimedia 2010; each model cites its own paper there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlas.compat.torchvision import prepare_torchvision
from dlas.errors import ConfigurationError, MissingPackageError
from dlas.layers.byol import without_byol
from dlas.registry import ARCHS, nearest
from dlas.types import PositiveInt

_PREFIX = "net."


@ARCHS.register("torchvision")
class TorchvisionClassifier(nn.Module):
    """A classifier of torchvision, with random weights; its files are taken by `path.pretrain`. torchvision must be installed.

    Layers have torchvision's names behind `net.`: `hidden_layer: net.avgpool` for a `byol` over it.

    Args:
        model: its name: `resnet18`, `vgg16_bn`, `efficientnet_b0`, `vit_b_16`, `swin_t`, ...
            (`torchvision.models.list_models(torchvision.models)`).
        num_classes: number of classes.
        options: further options of torchvision's function.

    Raises:
        MissingPackageError: torchvision is not installed.
        ConfigurationError: it has no such model, or refuses the options.
    """

    def __init__(self, *, model: str, num_classes: PositiveInt = 1000, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        prepare_torchvision()
        try:
            from torchvision import models
        except ImportError as error:
            raise MissingPackageError("torchvision", "the network torchvision") from error
        known = models.list_models(module=models)
        if model not in known:
            close = nearest(model, known)
            hint = f"did you mean '{close}'?" if close else f"it has: {', '.join(known)}"
            raise ConfigurationError(f"model: torchvision has no classifier '{model}'; {hint}")
        try:
            self.net: nn.Module = models.get_model(model, weights=None, num_classes=num_classes, **(options or {}))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"options: torchvision's {model} refuses them: {error}") from error

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), less ImageNet's mean and divided by its deviation -> logits (B, num_classes)."""
        logits: Tensor = self.net(x)
        return logits

    @staticmethod
    def rename_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Names of torchvision's files; of a checkpoint of `byol` the online sub-network."""
        found = without_byol(state_dict)
        return {key if key.startswith(_PREFIX) else _PREFIX + key: value for key, value in found.items()}

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"model": "squeezenet1_1", "num_classes": 5, "options": {"dropout": 0.0}}
        return options, (torch.randn(2, 3, 32, 32),)
