"""A discriminator that sees augmented pictures in training, with a chance that follows how far it overfits.

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (arXiv:2006.06676), sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.augment import AUGMENTATIONS
from dlas.ranks import summed
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt


@ARCHS.register("augmented_discriminator")
class AugmentedDiscriminator(nn.Module):
    """Any discriminator of pictures, behind differentiable augmentations: ADA, or DiffAugment.

    In training every picture that it is given is augmented, real or generated; the losses of GANs, R1 among them, need nothing
    else. `discriminator_gan` and `stylegan2_divergence` tell it the logits of real pictures, from the mean sign of which the
    chance `p` follows: above `target`, the discriminator knows its pictures too well, and `p` rises. `p` is part of the
    network's weights, so a run goes on with it, and is logged as `augment_p`. In evaluation nothing is augmented.

    DiffAugment: `augment: [diff_color, diff_translation, diff_cutout]`, `probability: 1`, `target: null`.

    Args:
        discriminator: the network, as under `networks`: `{which_model: stylegan2_rosinality_disc, size: 256}`. It must take
            pictures as its first argument.
        augment: what is done, in this order: `blit` (mirrored, turned by quarters, shifted by whole pixels), `geometry`
            (scaled, turned, stretched, shifted) and `color` are ADA's, together its `bgc`; `diff_color`, `diff_translation`,
            `diff_cutout` those of DiffAugment.
        probability: chance of each change, at first.
        target: mean sign of the logits of real pictures at which the chance stays; none: it never changes.
        images: real pictures within which the chance can go from 0 to 1.
        window: real pictures after which it is changed.
        unit_range: pictures are in [0, 1], not in [-1, 1].

    Raises:
        ValueError: there is no such augmentation, or `target` is not within -1 and 1.
    """

    p: Tensor
    signs: Tensor
    seen: Tensor

    def __init__(
        self,
        *,
        discriminator: dict[str, Any],
        augment: Sequence[str] = ("blit", "geometry", "color"),
        probability: Fraction = 0.0,
        target: float | None = 0.6,
        images: PositiveInt = 500_000,
        window: PositiveInt = 256,
        unit_range: bool = False,
    ) -> None:
        super().__init__()
        unknown = [name for name in augment if name not in AUGMENTATIONS]
        if unknown:
            raise ValueError(f"augment: there is no '{unknown[0]}'; known: {', '.join(AUGMENTATIONS)}")
        if target is not None and not -1 < target < 1:
            raise ValueError(f"target must be within -1 and 1, as the mean of signs is; got {target}")
        self.discriminator = create_network(discriminator, name="discriminator")
        self.augment = tuple(augment)
        self.target = target
        self.images = images
        self.window = window
        self.unit_range = unit_range
        self.register_buffer("p", torch.tensor(float(probability)))
        self.register_buffer("signs", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    @property
    def checkpointing(self) -> bool:
        """Whether the discriminator recomputes activations in the backward pass, if it can."""
        return bool(getattr(self.discriminator, "checkpointing", False))

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        if hasattr(self.discriminator, "checkpointing"):
            self.discriminator.checkpointing = value  # type: ignore[assignment]  # nn.Module's attributes are typed as tensors

    def forward(self, x: Tensor, *others: Any) -> Any:
        """Judges pictures.

        Args:
            x: (batch, channels, height, width), 8 pixels or more in both directions.
            others: further arguments of the discriminator.

        Returns:
            What the discriminator returns.
        """
        return self.discriminator(self.augmented(x) if self.training else x, *others)

    def augmented(self, x: Tensor) -> Tensor:
        """Pictures as the discriminator sees them in training, float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            x = x * 2 - 1 if self.unit_range else x
            for name in self.augment:
                x = AUGMENTATIONS[name](x, self.p)
            return (x + 1) / 2 if self.unit_range else x

    @torch.no_grad()
    def observe_real(self, logits: Tensor) -> dict[str, Tensor]:
        """Takes logits of real pictures, where more is more real, and changes the chance; does not wait for the device.

        Args:
            logits: (batch, ...).

        Returns:
            What is to be logged: the chance that these pictures had.
        """
        chance = self.p.clone()
        if self.target is not None:
            signs = logits.detach().float().sign().nan_to_num().flatten(1).mean(1)
            found = summed(torch.stack((signs.sum(), self.seen.new_full((), len(signs)))))
            self.signs += found[0]
            self.seen += found[1]
            due = self.seen >= self.window
            moved = self.p + (self.signs / self.seen - self.target).sign() * self.seen / self.images
            self.p.copy_(torch.where(due, moved.clamp(0, 1), self.p))
            self.signs.masked_fill_(due, 0)
            self.seen.masked_fill_(due, 0)
        return {"augment_p": chance}

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        inner = {"which_model": "stylegan2_rosinality_disc", "size": 16, "max_channels": 8}
        return {"discriminator": inner, "probability": 0.5}, (torch.rand(4, 3, 16, 16),)
