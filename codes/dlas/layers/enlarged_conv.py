"""3x3 convolutions of nearest-neighbour enlargements, done on the small pictures.

Along a side the first copy of a pixel sees the pixel before it and, with two taps, the pixel: w0 x[i-1] + (w1 + w2) x[i], which
is s x[i] - w0 (x[i] - x[i-1]) with s = w0 + w1 + w2. In the same way the last copy makes s x[i] + w2 (x[i+1] - x[i]), and those
between s x[i]. So whatever the factor, three products with single pixels and their differences do for a side and nine for both,
in place of 9 taps for each of the factor^2 copies.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dlas.layers.pointwise import pointwise

Nine = tuple[Tensor, ...]
"""By what is done along rows, then by what is done along columns: the pixel, the difference before it, the one after it."""


def weights_of(weight: Tensor) -> Nine:
    """A convolution (M, D, 3, 3) -> nine matrices (M, D)."""
    return tuple(both.contiguous() for rows in _of_taps(weight.unbind(2)) for both in _of_taps(rows.unbind(2)))


def _of_taps(taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return taps[0] + taps[1] + taps[2], -taps[0], taps[2]


def differences(x: Tensor) -> Nine:
    """What these are multiplied with: (B, D, h, w) -> nine of that shape. Outside is 0."""
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return tuple(both.contiguous(memory_format=layout) for rows in _along(x, 2) for both in _along(rows, 3))


def _along(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    outside, length = torch.zeros_like(x.narrow(dim, 0, 1)), x.shape[dim]
    steps = torch.cat((outside, x, outside), dim).diff(dim=dim)
    return x, steps.narrow(dim, 0, length), steps.narrow(dim, 1, length)


def add_convolved(result: Tensor, seen: Nine, weights: Nine) -> Tensor:
    """Adds the convolution of the enlarged, in place.

    Args:
        result: (B, M, H, W), which no gradient needs as it is.
        seen: `differences`, (B, D, H / factor, W / factor).
        weights: `weights_of`, (M, D).
    """
    made: Tensor = _AddInPlaces.apply(result, *map(pointwise, seen, weights))
    return made


class _AddInPlaces(torch.autograd.Function):
    """Adds nine products, (B, M, h, w), to the copies of pixels that they are part of."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, *products: Tensor) -> Tensor:
        ctx.mark_dirty(result)
        ctx.factor = result.shape[-1] // products[0].shape[-1]
        copies = _copies(result, ctx.factor)
        by_column = zip(*(_of_copies(products[first : first + 3], ctx.factor) for first in (0, 3, 6)), strict=True)
        for column, rows in enumerate(by_column):
            for row, value in enumerate(_of_copies(rows, ctx.factor)):
                copies[:, :, :, row, :, column].add_(value)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        rows = _of_products(_copies(gradient, ctx.factor).unbind(3))
        return gradient, *(both for row in rows for both in _of_products(row.unbind(4)))


def _copies(x: Tensor, factor: int) -> Tensor:
    """(B, M, h factor, w factor) -> (B, M, h, factor, w, factor)."""
    return x.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))


def _of_copies(products: Sequence[Tensor], factor: int) -> list[Tensor]:
    """What is added to the first copy along a side, to those between, and to the last."""
    same, before, after = products
    return [same + before, *[same] * (factor - 2), same + after]


def _of_products(copies: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The transpose of `_of_copies`: gradients of the products."""
    return functools.reduce(torch.add, copies), copies[0], copies[-1]
