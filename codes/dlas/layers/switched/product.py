"""The product of shares and kernels."""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.layers.switched.grouped import grouped_conv2d

FEWEST_GROUPED = {"cpu": 3, "cuda": 8}
"""Kernels from which places are grouped by kernel, by kind of device; with fewer, all kernels are applied. May be changed, to
measure. On the CPU grouping is faster from there on (`benchmarks/switched_conv.py`); on CUDA that has not been measured."""


@functools.cache
def _runs_triton(device: torch.device) -> bool:
    """Triton is installed, and knows all types of this NVIDIA device."""
    if importlib.util.find_spec("triton") is None or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


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
            is applied, from `FEWEST_GROUPED` kernels on, and the gradient of the shares is the published one: that of the
            chosen, at all of them.

    Returns:
        (B, out, H', W').
    """
    kind = x.device.type
    if hard and kind in FEWEST_GROUPED and weight.shape[2] >= FEWEST_GROUPED[kind]:
        if kind == "cpu":
            return grouped_conv2d(x, weight, shares, bias, stride, padding)
        # Triton's programs add up the gradient of the input in no fixed order, and are not for double precision.
        if x.dtype != torch.float64 and not torch.are_deterministic_algorithms_enabled() and _runs_triton(x.device):
            from dlas.layers.switched.grouped_triton import triton_conv2d

            return triton_conv2d(x, weight, shares, bias, stride, padding)
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
