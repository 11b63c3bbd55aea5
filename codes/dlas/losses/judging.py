"""Running a discriminator over the state: its arguments, its logits, and the penalties on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import State
from dlas.losses.penalties import interpolate_gradient_penalty


def judge_of(loss: str, named: str | None, context: Context) -> str:
    """Name of the discriminator: the one that was named, else the network that the step trains."""
    if named is not None:
        return named
    if len(context.trained) != 1:
        trained = ", ".join(context.trained) or "no network"
        raise ConfigurationError(
            f"{loss}: which network is the discriminator? The step trains {trained}; name it as 'discriminator'"
        )
    return context.trained[0]


def look_up(spec: Any, state: State, context: Context, noise: float, stream: str) -> list[Any]:
    """The discriminator's arguments: keys are looked up, `None` stands for no value, literals pass, lists nest."""
    items = spec if isinstance(spec, list | tuple) else [spec]
    return [_argument(item, state, context, noise, f"{stream}.{index}") for index, item in enumerate(items)]


def _argument(item: Any, state: State, context: Context, noise: float, stream: str) -> Any:
    if isinstance(item, list | tuple):
        return look_up(item, state, context, noise, stream)
    value = (None if item == "None" else state[item]) if isinstance(item, str) else item
    if noise and isinstance(value, Tensor) and value.is_floating_point():
        return value + noise * noise_like(value, context, stream).to(value.dtype)
    return value


def noise_like(tensor: Tensor, context: Context, stream: str) -> Tensor:
    """Uniform in [0, 1), float32. Each sample's noise is its own, however the batch is cut."""
    if len(tensor) != len(context.positions):
        raise ValueError(
            f"noise for a discriminator's input of shape {tuple(tensor.shape)}: its first axis must be the batch, but "
            f"the batch has {len(context.positions)} samples"
        )
    return context.rand(tensor.shape[1:], stream, tensor.device)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies a function to every tensor in nested lists."""
    if isinstance(value, list | tuple):
        return [map_tensors(function, each) for each in value]
    return function(value) if isinstance(value, Tensor) else value


def first_image(arguments: list[Any], loss: str = "discriminator_gan") -> Tensor:
    """The argument with respect to which penalties are taken."""
    if not isinstance(arguments[0], Tensor) or not arguments[0].is_floating_point():
        raise ValueError(f"{loss}: a gradient penalty needs a float tensor as the discriminator's first argument")
    return arguments[0]


def judge(network: nn.Module, arguments: list[Any]) -> list[Tensor]:
    """The logits of each scale, in float32."""
    result = network(*arguments)
    scales = result if isinstance(result, list | tuple) else [result]
    logits = [scale[-1] if isinstance(scale, list | tuple) and scale else scale for scale in scales]
    wrong = next((each for each in logits if not isinstance(each, Tensor)), None)
    if wrong is not None or not logits:
        found = "an empty list" if not logits else f"a {type(wrong).__name__}"
        raise ValueError(f"a discriminator must return one tensor of logits, or a list of one for each scale, not {found}")
    return [each.float() for each in logits]


def side_by_side(logits: list[Tensor]) -> Tensor:
    """The logits of all scales as one tensor, (B, ...)."""
    return logits[0] if len(logits) == 1 else torch.cat([each.flatten(1) for each in logits], 1)


def observe_real(network: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Tells a discriminator that wants to know how it judged real samples.

    Args:
        network: a discriminator; `augmented_discriminator` has the method `observe_real`.
        logits: (B, ...), more is more real.

    Returns:
        Scalars to log.
    """
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    observe = getattr(inner, "observe_real", None)
    return observe(logits) if observe is not None else {}


def penalty_between(loss: str, network: nn.Module, real: list[Any], fake: list[Any], context: Context, stream: str) -> Tensor:
    """`interpolate_gradient_penalty` of a network; further arguments are those of the real samples."""
    first, second = first_image(real, loss).float(), first_image(fake, loss).float()
    if first.shape != second.shape:
        raise ValueError(
            f"{loss}: interpolate_penalty needs real and fake samples of the same shape, not "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    alpha = noise_like(first[(slice(None), *[slice(1)] * (first.ndim - 1))], context, stream)
    with torch.enable_grad(), torch.autocast(first.device.type, enabled=False):
        return interpolate_gradient_penalty(lambda x: side_by_side(judge(network, [x, *real[1:]])), first, second, alpha)
