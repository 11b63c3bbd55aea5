"""Hard routing on the CPU without the work of kernels that are not chosen: places grouped by kernel, one product for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PLACES_AT_ONCE = 512
"""Places whose neighbourhoods are laid out at once; the extra memory is this times the size of a kernel."""


def grouped_conv2d(x: Tensor, weight: Tensor, chosen: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """The convolution whose kernel is another one at each place.

    Args:
        x: (B, in, H, W).
        weight: (out, in, breadth, k, k).
        chosen: (B, breadth, H', W'), 1 for the kernel of a place, 0 for the others.
        bias: (out,), (breadth, out) or None.
        stride: of the convolution.
        padding: zeros on each side.

    Returns:
        (B, out, H', W'), channels last in memory.
    """
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
    with torch.autocast("cpu", enabled=False):
        return _GroupedConv2d.apply(x, weight, chosen, bias, stride, padding)


class _Layout(NamedTuple):
    """Where the neighbourhoods of places begin in the rows of the padded input.

    Attributes:
        corners: row of the first pixel of each place's neighbourhood, (places,).
        taps: rows from there to all pixels of a neighbourhood, (k * k,).
        order: places sorted by their kernels.
        counts: places of each kernel.
    """

    corners: Tensor
    taps: Tensor
    order: Tensor
    counts: list[int]

    def groups(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """A kernel, some of its places, and the rows of their neighbourhoods (places, k * k)."""
        for number, places in enumerate(self.order.split(self.counts)):
            for some in places.split(PLACES_AT_ONCE):
                if len(some):
                    yield number, some, self.corners[some, None] + self.taps


def _layout(chosen: Tensor, padded: torch.Size, kernel: int, stride: int) -> _Layout:
    batch, breadth, height, width = chosen.shape
    _, padded_height, padded_width, _ = padded
    rows = torch.arange(batch)[:, None, None] * (padded_height * padded_width)
    rows = rows + torch.arange(height)[:, None] * (stride * padded_width) + torch.arange(width) * stride
    taps = torch.arange(kernel)[:, None] * padded_width + torch.arange(kernel)
    # The number of the kernel, by a product: many times faster than argmax over a dimension that is not the last.
    kernels = (torch.arange(breadth, dtype=torch.float32) @ chosen.flatten(2).float()).long().flatten()
    counts = torch.bincount(kernels, minlength=breadth).tolist()
    return _Layout(rows.flatten(), taps.flatten(), kernels.argsort(stable=True), counts)


def _padded(x: Tensor, padding: int) -> Tensor:
    """(B, C, H, W) -> (B, H + 2 padding, W + 2 padding, C), contiguous."""
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding)).contiguous()


def _matrices(weight: Tensor) -> Tensor:
    """(out, in, breadth, k, k) -> (breadth, k * k * in, out)."""
    return weight.permute(2, 3, 4, 1, 0).flatten(1, 3).contiguous()


class _GroupedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, chosen: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        batch, _, height, width = chosen.shape
        padded = _padded(x, padding)
        pixels = padded.flatten(0, 2)
        layout = _layout(chosen, padded.shape, weight.shape[-1], stride)
        # Not a view, so that what follows may work in place, as activations do.
        y = x.new_empty((batch, weight.shape[0], height, width)).contiguous(memory_format=torch.channels_last)
        result = y.permute(0, 2, 3, 1).view(batch * height * width, -1)
        matrices = _matrices(weight)
        for number, places, rows in layout.groups():
            patches = pixels.index_select(0, rows.flatten()).view(len(places), -1)
            own_bias = bias[number] if bias is not None and bias.dim() == 2 else bias
            product = patches @ matrices[number] if own_bias is None else torch.addmm(own_bias, patches, matrices[number])
            result.index_copy_(0, places, product)
        ctx.padding, ctx.size, ctx.layout = padding, x.shape[2:], layout
        # The padded input is kept in place of the input: laying it out again would take longer than it saves.
        # The output is kept as a copy, for what follows may change it.
        ctx.save_for_backward(padded, weight, bias, result.clone() if ctx.needs_input_grad[2] else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, bias, result = ctx.saved_tensors
        wants_x, wants_weight, wants_chosen, wants_bias = ctx.needs_input_grad[:4]
        padding, size, layout = ctx.padding, weight.shape[-1], ctx.layout
        flat = grad.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
        pixels = padded.flatten(0, 2)
        matrices = _matrices(weight)
        grad_pixels = torch.zeros_like(pixels) if wants_x else None
        grad_matrices = torch.zeros_like(matrices) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        for number, places, rows in layout.groups():
            own = flat.index_select(0, places)
            if grad_matrices is not None:
                patches = pixels.index_select(0, rows.flatten()).view(len(places), -1)
                grad_matrices[number].addmm_(patches.t(), own)
            if grad_pixels is not None:
                spread = (own @ matrices[number].t()).view(len(rows) * size * size, -1)
                grad_pixels.index_add_(0, rows.flatten(), spread)
            if grad_bias is not None and grad_bias.dim() == 2:
                grad_bias[number] += own.sum(dim=0)
        if grad_bias is not None and grad_bias.dim() == 1:
            grad_bias = flat.sum(dim=0)
        grad_chosen = None
        if wants_chosen:
            batch, _, height, width = grad.shape
            # What a share is multiplied by is the output itself; it is told to all switches, and the route keeps the winner's.
            told = torch.linalg.vecdot(flat, result).view(batch, 1, height, width)
            grad_chosen = told.expand(-1, weight.shape[2], -1, -1)
        if grad_pixels is not None:
            height, width = ctx.size
            inner = grad_pixels.view(padded.shape)[:, padding : padding + height, padding : padding + width]
            grad_pixels = inner.permute(0, 3, 1, 2)
        if grad_matrices is not None:
            out, channels, breadth = weight.shape[:3]
            grad_matrices = grad_matrices.view(breadth, size, size, channels, out).permute(4, 3, 0, 1, 2)
        return grad_pixels, grad_matrices, grad_chosen, grad_bias, None, None
