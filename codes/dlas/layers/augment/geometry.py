"""Changes of place: exact turns and shifts, and affine maps with filtered resampling.

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (arXiv:2006.06676), appendix B.
Pictures are enlarged twofold by an orthogonal wavelet's low-pass filter, sampled, and reduced by the same filter: a map that
changes nothing gives the picture back exactly, and others do not alias.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.host import constant, sent
from dlas.layers.augment.draws import happens, normal, uniform
from dlas.layers.stylegan2 import filter_kernel, filter_resample

SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466),
    *(0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578),
    *(0.0017677118642428036, -0.007800708325034148),
)
"""Low-pass filter of the Symlet wavelet with 6 vanishing moments."""

PHASE = (5.5 - sum(place * tap for place, tap in enumerate(SYM6)) / sum(SYM6)) / 2
"""Pixels by which the filter, which is not symmetric, puts what it enlarges too far to the left and too high."""

MARGIN = 3
"""Pixels around a picture that the second filter looks at."""

SHIFT = 0.125
"""Of a picture's sides: the largest shift by whole pixels, and the deviation of the others."""


def blit(x: Tensor, p: Tensor) -> Tensor:
    """Mirrored, turned by quarters (by halves where pictures are not square), shifted by whole pixels; each with chance `p`.

    What is shifted in is the picture's mirror image.
    """
    count, _, height, width = x.shape

    def where(chosen: Tensor, changed: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, 1, 1, 1), changed, x)

    x = where(happens(p, count) & (torch.rand(count, device=x.device) < 0.5), x.flip(-1))
    turns = uniform(happens(p, count), 0, 4).floor()
    x = where(turns >= 2, x.flip((-2, -1)))
    if height == width:
        x = where(turns % 2 == 1, x.rot90(1, (-2, -1)))
    moved = happens(p, count)
    down, right = (uniform(moved, -SHIFT, SHIFT).mul(side).round() for side in (height, width))
    rows = _mirrored(torch.arange(height, device=x.device) - down[:, None], height)
    columns = _mirrored(torch.arange(width, device=x.device) - right[:, None], width)
    x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, width))
    return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], height, -1))


def geometry(x: Tensor, p: Tensor) -> Tensor:
    """Scaled, turned, stretched, turned again and shifted; each with chance `p`.

    The two turns together happen with chance `p`.
    """
    count, _, height, width = x.shape
    turned = 1 - (1 - p).sqrt()
    eye = torch.eye(2, device=x.device)
    scale = torch.exp2(normal(happens(p, count), 0.2)).view(-1, 1, 1)
    first, second = (_rotation(uniform(happens(turned, count), -math.pi, math.pi)) for _ in range(2))
    stretch = torch.exp2(normal(happens(p, count), 0.2))
    stretched = torch.stack((stretch, 1 / stretch), 1)[:, None] * eye
    moved = happens(p, count)
    shift = torch.stack([normal(moved, SHIFT) * side for side in (width, height)], 1)
    return resampled(x, scale * first @ stretched @ second, shift)


def resampled(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Pictures under affine maps, mirrored beyond their borders.

    Args:
        x: (N, C, H, W), 8 pixels or more in both directions.
        matrix: (N, 2, 2): from places in the result, (right, down) of the middle in pixels, to places in `x`.
        shift: (N, 2), in pixels; added to the places in the result before.

    Returns:
        (N, C, H, W).
    """
    height, width = x.shape[-2:]
    kernel = sent(filter_kernel(SYM6), x.device)
    padded = F.pad(x, (2 * MARGIN,) * 4, mode="reflect")
    crop = slice(2 * MARGIN, -2 * MARGIN)
    large = filter_resample(padded, 4 * kernel, up=2, pad=(6, 5))[:, :, crop, crop]
    down, right = (
        (torch.arange(2 * (side + 2 * MARGIN), device=x.device) + 0.5) / 2 - side / 2 - MARGIN + PHASE
        for side in (height, width)
    )
    places = torch.stack(torch.meshgrid(right, down, indexing="xy"), -1).flatten(0, 1)
    found = (places + shift[:, None]) @ matrix.transpose(1, 2)
    sides = constant((width, height), x.device)
    # Just outside there are the mirrored pixels that the filter has seen; further out, places are mirrored themselves.
    found = torch.where(found.abs() > sides / 2 + MARGIN, _folded(found, (sides - 1) / 2), found)
    grid = ((found - PHASE) / (sides / 2 + MARGIN)).view(len(x), len(down), len(right), 2)
    sampled = sample(large, grid)
    return filter_resample(sampled, kernel.flip(0, 1), down=2, pad=(-1, -1))


def sample(x: Tensor, grid: Tensor) -> Tensor:
    """`torch.nn.functional.grid_sample` (bilinear, zeros outside), which can be differentiated by `x` any number of times.

    Args:
        x: (N, C, H, W).
        grid: (N, rows, columns, 2), without a gradient.
    """
    return _Sample.apply(x, grid)


class _Sample(torch.autograd.Function):
    """It is linear in the picture: the derivative of each is the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.sides = x.shape[-2:]
        return F.grid_sample(x, grid, align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradients[0], grid, ctx.sides), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, grid: Tensor, sides: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(grid)
        shape = y.new_empty((*y.shape[:2], *sides))  # of which only the shape is looked at
        return torch.ops.aten.grid_sampler_2d_backward(y, shape, grid, 0, 0, False, (True, False))[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(gradients[0], grid), None, None


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)


def _folded(place: Tensor, most: Tensor) -> Tensor:
    """Mirrors numbers at -most and most until they lie between."""
    return most - ((place + most) % (4 * most) - 2 * most).abs()


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Mirrors indices at the first and the last pixel, which do not repeat."""
    return (side - 1 - ((index % (2 * side - 2)) - (side - 1)).abs()).long()
