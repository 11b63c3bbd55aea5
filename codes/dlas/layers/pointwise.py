"""Convolutions with one pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B, C, H, W) and a weight (M, C) -> (B, M, H, W)."""
    # PyTorch gives such convolutions on one thread of a CPU to a slower library, unless they are dilated; one pixel stays one.
    dilation = 2 if x.device.type == "cpu" else 1
    return F.conv2d(x, weight[:, :, None, None], bias, dilation=dilation)
