"""The augmentations of DiffAugment.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020 (arXiv:2006.10738), section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.layers.augment.draws import happens, uniform


def diff_color(x: Tensor, p: Tensor) -> Tensor:
    """Brightness moved by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    chosen = happens(p, len(x))
    x = x + uniform(chosen, -0.5, 0.5).view(-1, 1, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (1 + uniform(chosen, -1, 1)).view(-1, 1, 1, 1) + grey
    middle = x.mean((1, 2, 3), keepdim=True)
    return (x - middle) * (1 + uniform(chosen, -0.5, 0.5)).view(-1, 1, 1, 1) + middle


def diff_translation(x: Tensor, p: Tensor) -> Tensor:
    """Shifted by up to an eighth of the sides; 0 is shifted in."""
    height, width = x.shape[-2:]
    chosen = happens(p, len(x))
    rows, columns = (
        torch.arange(side, device=x.device) - _whole(chosen, int(side / 8 + 0.5))[:, None] for side in (height, width)
    )
    # A border of zeros stands for everything outside.
    rows, columns = (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1)
    x = F.pad(x, (1, 1, 1, 1)).gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, width + 2))
    return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], height, -1))


def diff_cutout(x: Tensor, p: Tensor) -> Tensor:
    """A rectangle of half the sides, anywhere within or over the border, is 0."""
    height, width = x.shape[-2:]
    chosen = happens(p, len(x))
    rows, columns = (_within(chosen, side) for side in (height, width))
    return x.masked_fill((rows[:, None, :, None] & columns[:, None, None, :]) & chosen.view(-1, 1, 1, 1), 0.0)


def _whole(chosen: Tensor, most: int) -> Tensor:
    """Whole numbers, uniform from -most to most."""
    return uniform(chosen, -most, most + 1).floor().long()


def _within(chosen: Tensor, side: int) -> Tensor:
    """(N, side): whether a place is in an interval of half the side with its middle anywhere."""
    middle = uniform(chosen, 0, side + 1).floor()[:, None]
    place = torch.arange(side, device=chosen.device) - middle + side // 4
    return (place >= 0) & (place < side // 2)
