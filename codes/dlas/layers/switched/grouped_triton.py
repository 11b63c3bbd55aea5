"""Hard routing on a GPU: places grouped by kernel in tiles, each multiplied by its own kernel. Needs Triton.

Nothing waits for the device: how many tiles a kernel has is known there only, so as many are launched as there can be at most.
"""
# Programs of Triton have untyped pointers, and constants in capitals.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from dlas.layers.switched.grouped import channels_last

PLACES = 64
"""Places of a tile."""

CHANNELS = 64
"""Channels of a tile, at most."""


def triton_conv2d(x: Tensor, weight: Tensor, chosen: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """`grouped_conv2d` of float32, bfloat16 or float16 on a GPU; the gradient of the input is summed in no fixed order."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
    with torch.autocast(device, enabled=False):
        return _TritonConv2d.apply(x, weight, chosen, bias, stride, padding)


class Tiles(NamedTuple):
    """Which places belong together; all on the device.

    Attributes:
        kernels: the kernel of each place.
        order: places sorted by their kernels.
        starts: where each kernel's begin in the order, and the end, (breadth + 1,).
        kernel: that of each tile, (places // PLACES + breadth,); breadth where there is no such tile.
        first: where each tile begins in the order.
    """

    kernels: Tensor
    order: Tensor
    starts: Tensor
    kernel: Tensor
    first: Tensor


def tiles(chosen: Tensor) -> Tiles:
    """Of (B, breadth, H, W)."""
    breadth, kernels = chosen.shape[1], chosen.argmax(dim=1).flatten()
    counts = torch.zeros(breadth + 1, dtype=torch.long, device=chosen.device).index_add_(0, kernels, torch.ones_like(kernels))
    starts = counts.cumsum(0) - counts
    own_tiles = (counts + PLACES - 1) // PLACES
    ends = own_tiles.cumsum(0)
    number = torch.arange(len(kernels) // PLACES + breadth, device=chosen.device)
    kernel = torch.searchsorted(ends[:-1], number, right=True)
    first = starts[kernel] + (number - (ends - own_tiles)[kernel]) * PLACES
    return Tiles(*(each.int() for each in (kernels, kernels.argsort(stable=True), starts, kernel, first)))


@triton.jit
def _forward(
    x, weight, bias, y, order, starts, tile_kernel, tile_first, height, width, out_height, out_width,
    BREADTH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    BIAS: tl.constexpr, PLACES: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of places by a block of output channels. x, y: channels last; weight: (breadth, k * k, in, out)."""
    kernel = tl.load(tile_kernel + tl.program_id(0))
    if kernel < BREADTH:
        sorted_places = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, PLACES)
        there = sorted_places < tl.load(starts + kernel + 1)
        place = tl.load(order + sorted_places, mask=there, other=0)
        picture, row, column = place // (out_height * out_width), place // out_width % out_height, place % out_width
        outs, ins = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT), tl.arange(0, BLOCK_IN)
        total = tl.zeros((PLACES, BLOCK_OUT), tl.float32)
        for tap in range(SIZE * SIZE):
            r, c = row * STRIDE + tap // SIZE - PADDING, column * STRIDE + tap % SIZE - PADDING
            inside = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
            pixel = ((picture * height + r) * width + c).to(tl.int64) * IN
            matrix = weight + (kernel * SIZE * SIZE + tap).to(tl.int64) * IN * OUT
            for begin in range(0, IN, BLOCK_IN):
                i = begin + ins
                a = tl.load(x + pixel[:, None] + i[None, :], mask=inside[:, None] & (i < IN)[None, :], other=0.0)
                b = tl.load(
                    matrix + i[:, None] * OUT + outs[None, :], mask=(i < IN)[:, None] & (outs < OUT)[None, :], other=0.0
                )
                total = tl.dot(a, b, total, input_precision=PRECISION)
        if BIAS == 1:
            total += tl.load(bias + outs, mask=outs < OUT, other=0.0).to(tl.float32)[None, :]
        if BIAS == 2:
            total += tl.load(bias + kernel * OUT + outs, mask=outs < OUT, other=0.0).to(tl.float32)[None, :]
        to = y + place.to(tl.int64)[:, None] * OUT + outs[None, :]
        tl.store(to, total.to(y.dtype.element_ty), mask=there[:, None] & (outs < OUT)[None, :])


@triton.jit
def _input_gradient(
    grad, weight, grad_x, order, starts, tile_kernel, tile_first, height, width, out_height, out_width,
    BREADTH: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    PLACES: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of places by a block of input channels, for one tap; added to grad_x, in float32, as other taps are."""
    kernel = tl.load(tile_kernel + tl.program_id(0))
    if kernel < BREADTH:
        sorted_places = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, PLACES)
        there = sorted_places < tl.load(starts + kernel + 1)
        place = tl.load(order + sorted_places, mask=there, other=0)
        picture, row, column = place // (out_height * out_width), place // out_width % out_height, place % out_width
        tap = tl.program_id(2)
        r, c = row * STRIDE + tap // SIZE - PADDING, column * STRIDE + tap % SIZE - PADDING
        inside = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        ins, outs = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
        matrix = weight + (kernel * SIZE * SIZE + tap).to(tl.int64) * IN * OUT
        total = tl.zeros((PLACES, BLOCK_IN), tl.float32)
        for begin in range(0, OUT, BLOCK_OUT):
            o = begin + outs
            own = grad + place.to(tl.int64)[:, None] * OUT + o[None, :]
            a = tl.load(own, mask=inside[:, None] & (o < OUT)[None, :], other=0.0)
            b = tl.load(matrix + ins[None, :] * OUT + o[:, None], mask=(ins < IN)[None, :] & (o < OUT)[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        pixel = ((picture * height + r) * width + c).to(tl.int64) * IN
        tl.atomic_add(grad_x + pixel[:, None] + ins[None, :], total, mask=inside[:, None] & (ins < IN)[None, :])


@triton.jit
def _weight_gradient(
    x, grad, grad_weight, order, starts, height, width, out_height, out_width,
    IN: tl.constexpr, OUT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    PLACES: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of input by output channels of one tap of one kernel, over all its places."""
    kernel, tap = tl.program_id(0) // (SIZE * SIZE), tl.program_id(0) % (SIZE * SIZE)
    ins, outs = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN), tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    end = tl.load(starts + kernel + 1)
    total = tl.zeros((BLOCK_IN, BLOCK_OUT), tl.float32)
    for begin in range(tl.load(starts + kernel), end, PLACES):
        sorted_places = begin + tl.arange(0, PLACES)
        there = sorted_places < end
        place = tl.load(order + sorted_places, mask=there, other=0)
        picture, row, column = place // (out_height * out_width), place // out_width % out_height, place % out_width
        r, c = row * STRIDE + tap // SIZE - PADDING, column * STRIDE + tap % SIZE - PADDING
        inside = there & (r >= 0) & (r < height) & (c >= 0) & (c < width)
        pixel = ((picture * height + r) * width + c).to(tl.int64) * IN
        a = tl.load(x + pixel[None, :] + ins[:, None], mask=inside[None, :] & (ins < IN)[:, None], other=0.0)
        own = grad + place.to(tl.int64)[:, None] * OUT + outs[None, :]
        b = tl.load(own, mask=inside[:, None] & (outs < OUT)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    to = grad_weight + tl.program_id(0).to(tl.int64) * IN * OUT + ins[:, None] * OUT + outs[None, :]
    tl.store(to, total, mask=(ins < IN)[:, None] & (outs < OUT)[None, :])


def _block(channels: int) -> int:
    return min(CHANNELS, max(16, triton.next_power_of_2(channels)))  # a product has 16 of each at least


class _TritonConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, chosen: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        batch, breadth, height, width = chosen.shape
        out, channels, _, size, _ = weight.shape
        pixels, own = channels_last(x), tiles(chosen)
        matrices = weight.permute(2, 3, 4, 1, 0).contiguous()
        # Not a view, so that what follows may work in place, as activations do.
        y = x.new_empty((batch, out, height, width)).contiguous(memory_format=torch.channels_last)
        ctx.shape = {"IN": channels, "OUT": out, "SIZE": size, "STRIDE": stride, "PADDING": padding, "PLACES": PLACES}
        ctx.shape |= {"BLOCK_IN": _block(channels), "BLOCK_OUT": _block(out)}
        ctx.shape["PRECISION"] = "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
        ctx.edges = (*x.shape[2:], height, width)
        _forward[(len(own.kernel), triton.cdiv(out, ctx.shape["BLOCK_OUT"]))](
            pixels, matrices, bias, y, *own[1:], *ctx.edges,
            BREADTH=breadth, BIAS=0 if bias is None else bias.dim(), **ctx.shape,
        )  # fmt: skip
        # The output is kept as a copy, for what follows may change it.
        ctx.save_for_backward(pixels, weight, bias, y.clone() if ctx.needs_input_grad[2] else None, *own)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight, bias, y, *saved = ctx.saved_tensors
        own = Tiles(*saved)
        wants_x, wants_weight, wants_chosen, wants_bias = ctx.needs_input_grad[:4]
        out, channels, breadth, size, _ = weight.shape
        laid = channels_last(grad)
        grad_x = grad_weight = grad_chosen = grad_bias = None
        in_blocks, out_blocks = triton.cdiv(channels, ctx.shape["BLOCK_IN"]), triton.cdiv(out, ctx.shape["BLOCK_OUT"])
        if wants_x:
            sums = torch.zeros_like(pixels, dtype=torch.float32)
            matrices = weight.permute(2, 3, 4, 1, 0).contiguous()
            _input_gradient[(len(own.kernel), in_blocks, size * size)](
                laid, matrices, sums, *own[1:], *ctx.edges, BREADTH=breadth, **ctx.shape
            )
            grad_x = sums.to(pixels.dtype).permute(0, 3, 1, 2)
        if wants_weight:
            products = weight.new_empty((breadth, size, size, channels, out), dtype=torch.float32)
            _weight_gradient[(breadth * size * size, in_blocks, out_blocks)](
                pixels, laid, products, own.order, own.starts, *ctx.edges, **ctx.shape
            )
            grad_weight = products.to(weight.dtype).permute(4, 3, 0, 1, 2)
        if wants_bias:
            flat = laid.flatten(0, 2).float()
            each = torch.zeros_like(bias, dtype=torch.float32)
            grad_bias = (flat.sum(dim=0) if bias.dim() == 1 else each.index_add_(0, own.kernels, flat)).to(bias.dtype)
        if wants_chosen:
            # What a share is multiplied by is the output itself; it is told to all switches, and the route keeps the winner's.
            grad_chosen = (grad * y).sum(dim=1, keepdim=True).expand(-1, breadth, -1, -1)
        return grad_x, grad_weight, grad_chosen, grad_bias, None, None
