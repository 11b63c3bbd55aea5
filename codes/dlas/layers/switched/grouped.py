"""Hard routing on the CPU without the work of kernels that are not chosen: places grouped by kernel, one product for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PLACES_AT_ONCE = 512
"""Places whose neighbourhoods are laid out at once, a multiple of `PLACES_ALIKE`."""

PLACES_ALIKE = 32
"""Groups are filled up to a multiple of this: oneDNN makes its code anew for each size, which takes longer than to run it."""


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

    def groups(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """A kernel, how many of its places come, these, and the rows of their neighbourhoods (places * k * k,).

        The last place is repeated until there are a multiple of `PLACES_ALIKE`; the repetitions are not in the number.
        """
        for number, places in enumerate(self.order.split(self.counts)):
            for some in places.split(PLACES_AT_ONCE):
                if count := len(some):
                    some = torch.cat([some, some[-1:].expand(-count % PLACES_ALIKE)])
                    yield number, count, some, (self.corners.index_select(0, some)[:, None] + self.taps).flatten()


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
    return F.pad(channels_last(x), (0, 0, padding, padding, padding, padding))


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous."""
    laid = x.permute(0, 2, 3, 1)
    if not laid.is_contiguous():
        laid = torch.empty_like(laid, memory_format=torch.contiguous_format)
        for own, picture in zip(laid, x, strict=True):  # transposing matrices is twice as fast as permuting pictures
            own.view(-1, own.shape[-1]).copy_(picture.flatten(1).t())
    return laid


def _matrices(weight: Tensor) -> Tensor:
    """(out, in, breadth, k, k) -> (breadth, out, k * k * in)."""
    return weight.permute(2, 0, 3, 4, 1).flatten(2).contiguous()


def _patches(pixels: Tensor, rows: Tensor, room: Tensor) -> Tensor:
    """Neighbourhoods written to `room`, (places, k * k * in): fresh memory each time would take longer than to fill it."""
    torch.index_select(pixels, 0, rows, out=room.view(-1, pixels.shape[1]))
    return room


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of matrices. By oneDNN, which uses AVX-512 also where MKL, which F.linear calls, does not: on AMD."""
    if x.dtype == torch.float32 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


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
        room = matrices.new_empty(PLACES_AT_ONCE, matrices.shape[2])
        for number, _, places, rows in layout.groups():
            patches = _patches(pixels, rows, room[: len(places)])
            own_bias = bias[number] if bias is not None and bias.dim() == 2 else bias
            result.index_copy_(0, places, _linear(patches, matrices[number], own_bias))
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
        flat = channels_last(grad).flatten(0, 2)
        pixels = padded.flatten(0, 2)
        matrices = _matrices(weight)
        room = matrices.new_empty(PLACES_AT_ONCE, matrices.shape[2])
        grad_pixels = torch.zeros_like(pixels) if wants_x else None
        grad_matrices = torch.zeros_like(matrices) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        for number, count, places, rows in layout.groups():
            own = flat.index_select(0, places)
            own[count:] = 0  # the repeated place counts once
            if grad_matrices is not None:
                patches = _patches(pixels, rows, room[: len(places)])
                grad_matrices[number] += _linear(own.t(), patches.t())
            if grad_pixels is not None:
                grad_pixels.index_add_(0, rows, _linear(own, matrices[number].t()).view(len(rows), -1))
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
            grad_matrices = grad_matrices.view(breadth, out, size, size, channels).permute(1, 4, 0, 2, 3)
        return grad_pixels, grad_matrices, grad_chosen, grad_bias, None, None
