"""The densely connected convolutions of an RRDB, kept for the backward pass without what joins them.

Written plainly, convolution k sees a tensor that joins the block's input and the results before k, and automatic
differentiation keeps each of these tensors: for C channels of input and G of growth 4 C + 10 G channels beside the results
themselves. Here input and results alone are kept, C + 4 G. The backward pass goes over what is *seen* rather than over what
sees: the gradients of all convolutions that see one tensor are joined, and one transposed convolution with their joined
weights gives its gradient. So nothing is added up in memory either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dense_block(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], slope: float, scale: float) -> Tensor:
    """The block in plain operations.

    Args:
        x: (B, C, H, W).
        weights: of the 3x3 convolutions; number k is (G, C + k G, 3, 3), the last one (C, C + k G, 3, 3).
        biases: of the same.
        slope: of the leaky ReLUs below 0. The last convolution has none.
        scale: weight of the last result, to which x is added.

    Returns:
        (B, C, H, W).
    """
    # Each result is appended to what is already joined: in the backward pass one sum then takes the place of one per part.
    seen = x
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        seen = torch.cat((seen, _activated(F.conv2d(seen, weight, bias, padding=1), slope)), dim=1)
    return torch.add(x, F.conv2d(seen, weights[-1], biases[-1], padding=1), alpha=scale)


def lean_dense_block(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], slope: float, scale: float) -> Tensor:
    """`dense_block` with the same result, and gradients that are the same up to rounding; it keeps less for them."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if x.dtype != dtype:
            return dense_block(x, weights, biases, slope, scale)
        weights, biases = [weight.to(dtype) for weight in weights], [bias.to(dtype) for bias in biases]
        with torch.autocast(device, enabled=False):
            return _LeanDenseBlock.apply(slope, scale, x, *weights, *biases)
    return _LeanDenseBlock.apply(slope, scale, x, *weights, *biases)


def training_plainly(*layers: nn.Module) -> bool:
    """Whether another way to the same result may take the place of calling layers.

    Gradients are kept, nothing is compiled or exported, and each layer is a convolution with its weight and bias and nothing
    else: no hook, no other parametrization.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(
        type(layer) is nn.Conv2d
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        for layer in layers
    )


def _activated(x: Tensor, slope: float) -> Tensor:
    # In place: the convolution's result is needed by nothing else, and the slope's sign is known from the output.
    return F.leaky_relu_(x, slope)


class _LeanDenseBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slope: float, scale: float, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.slope, ctx.scale = slope, scale
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        seen, results = x, []
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            results.append(_activated(F.conv2d(seen, weight, bias, padding=1), slope))
            seen = torch.cat((seen, results[-1]), dim=1)
        last = F.conv2d(seen, weights[-1], biases[-1], padding=1)
        ctx.save_for_backward(x, *results, *parameters)
        return torch.add(x, last, alpha=scale, out=last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        count = (len(saved) - 1) // 3 + 1  # of the tensors seen, and of the convolutions
        tensors, weights, biases = saved[:count], saved[count : 2 * count], saved[2 * count :]
        if torch.is_grad_enabled():  # gradients of the gradients are wanted
            return None, None, *_differentiable(ctx, tensors[0], weights, biases, gradient)
        of_weights: list[Tensor | None] = [None] * count
        of_biases: list[Tensor | None] = [None] * count
        of_seen = joined = gradient
        for index in range(count - 1, -1, -1):
            if index < count - 1:
                own = torch.ops.aten.leaky_relu_backward(of_seen, tensors[index + 1], ctx.slope, True)
                joined = torch.cat((own, joined), dim=1)
            else:
                own = gradient
            needed = ctx.needs_input_grad[3 + index], ctx.needs_input_grad[3 + count + index]
            if any(needed):
                seen = torch.cat(tensors[: index + 1], dim=1) if index else tensors[0]
                of_weights[index], of_biases[index] = _of_parameters(own, seen, weights[index], needed)
            if index or ctx.needs_input_grad[2]:
                start = sum(tensor.shape[1] for tensor in tensors[:index])
                seeing = [weight[:, start : start + tensors[index].shape[1]] for weight in weights[index:]]
                # The residual's scale is put on the small tensors of weights and not on the large gradient.
                seeing[-1] = seeing[-1] * ctx.scale
                of_seen = _of_input(joined, tensors[index], torch.cat(seeing))
        for last in (of_weights[-1], of_biases[-1]):
            if last is not None:
                last *= ctx.scale
        return None, None, of_seen.add_(gradient) if ctx.needs_input_grad[2] else None, *of_weights, *of_biases


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return _convolution_backward(gradient, x, weight, [True, False, False])[0]


def _of_parameters(
    gradient: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    return _convolution_backward(gradient, x, weight, [False, *needed])[1:]


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> Any:
    places = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, transposed, output_padding, groups
    return torch.ops.aten.convolution_backward(gradient, x, weight, [weight.shape[0]], *places, needed)


def _differentiable(ctx: Any, x: Tensor, weights: Any, biases: Any, gradient: Tensor) -> list[Tensor | None]:
    inputs = (x, *weights, *biases)
    wanted = [each for each, needed in zip(inputs, ctx.needs_input_grad[2:], strict=True) if needed]
    found = iter(
        torch.autograd.grad(dense_block(x, weights, biases, ctx.slope, ctx.scale), wanted, gradient, create_graph=True)
    )
    return [next(found) if needed else None for needed in ctx.needs_input_grad[2:]]
