"""3x3 convolutions of pictures that are enlarged twice by nearest neighbours, done without enlarging them.

Every pixel of the result sees 2x2 pixels of the small picture, some of them by several of its taps. With these taps added up
it is a transposed convolution of stride 2 with 4x4 taps: 4 products where the enlarged picture takes 9, and nothing of twice
the size is kept for the backward pass but the result.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same up to rounding as a convolution of `F.interpolate(x, scale_factor=2, mode="nearest")`.

    Args:
        x: (B, C, H, W).
        weight: (D, C, 3, 3); the padding is 1.
        bias: (D,), or none.

    Returns:
        (B, D, 2 H, 2 W).
    """
    # A transposed convolution reads its taps backwards; a pixel stands for 2x2 places, so each tap falls on 2x2 taps.
    taps = F.pad(weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))
    rows = taps[:, :, 1:] + taps[:, :, :-1]
    taps = rows[..., 1:] + rows[..., :-1]
    if bias is None:
        return F.conv_transpose2d(x, taps, stride=2, padding=1)
    made: Tensor = _WithBias.apply(F.conv_transpose2d(x, taps, bias.detach(), stride=2, padding=1), bias)
    return made


class _WithBias(torch.autograd.Function):
    """Hands its gradient to a bias that was added already: in bfloat16 oneDNN takes longer for it than for all others."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, bias: Tensor) -> Tensor:
        del bias
        ctx.mark_dirty(made)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        return gradient, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[1] else None


def pays(x: Tensor) -> bool:
    """Whether it is faster here than to enlarge: on a CPU in single precision, and in bfloat16 with 32 channels or more."""
    if x.device.type != "cpu":
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.float32 or (dtype == torch.bfloat16 and x.shape[1] >= 32)
