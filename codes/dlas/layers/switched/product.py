"""The product of shares and kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.layers.switched.grouped import grouped_conv2d

FEWEST_GROUPED = 3
"""Kernels from which grouping places by kernel is faster on the CPU than applying all; `benchmarks/switched_conv.py`."""


def switched_conv2d(
    x: Tensor,
    weight: Tensor,
    shares: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    hard: bool = False,
) -> Tensor:
    """Convolutions of one input, each weighted by its share at each place of the output, and summed.

    Args:
        x: (B, in, H, W).
        weight: (out, in, breadth, k, k).
        shares: (B, breadth, H', W'), at the size of the output.
        bias: (out,) for all kernels, or (breadth, out) for each its own; weighted like the kernels.
        stride: of the convolutions.
        padding: zeros on each side.
        hard: says that one share of each place is 1 and the others 0, as `route_top1` makes them. Then only the chosen kernel
            is applied on the CPU, from three kernels on, and the gradient of the shares is the published one: that of the
            chosen, at all of them.

    Returns:
        (B, out, H', W').
    """
    if hard and x.device.type == "cpu" and weight.shape[2] >= FEWEST_GROUPED:
        return grouped_conv2d(x, weight, shares, bias, stride, padding)
    return summed_conv2d(x, weight, shares, bias, stride, padding)


def summed_conv2d(x: Tensor, weight: Tensor, shares: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """The sum written out, one convolution for each kernel; arguments as of `switched_conv2d`."""
    result = None
    for number, kernel in enumerate(weight.unbind(2)):
        own_bias = bias[number] if bias is not None and bias.dim() == 2 else bias
        term = F.conv2d(x, kernel, own_bias, stride, padding)
        term = term * shares[:, number : number + 1].to(term.dtype)
        result = term if result is None else result + term
    assert isinstance(result, torch.Tensor)
    return result
