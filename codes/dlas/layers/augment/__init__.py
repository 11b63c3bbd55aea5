"""Augmentations of what a discriminator sees: differentiable twice, so that generators learn through them and R1 passes them.

Each is a function of pictures (N, C, H, W) in [-1, 1] and of the chance of each change, a tensor of shape (). They draw from
PyTorch's global generator on the pictures' device, which a run seeds for each micro-batch, and work in float32.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dlas.layers.augment.color import color
from dlas.layers.augment.geometry import blit, geometry
from dlas.layers.augment.simple import diff_color, diff_cutout, diff_translation

AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "blit": blit,
    "geometry": geometry,
    "color": color,
    "diff_color": diff_color,
    "diff_translation": diff_translation,
    "diff_cutout": diff_cutout,
}
"""By the name that it has in options. The first three are ADA's, the others those of DiffAugment."""
