"""Injectors that run a network of the configuration."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dlas.context import Context
from dlas.errors import TrainingError
from dlas.injectors.base import Injector, State, name_outputs, read_inputs
from dlas.registry import INJECTORS
from dlas.types import NetworkName, StateIns, StateOuts


@INJECTORS.register("generator")
class GeneratorInjector(Injector):
    """Runs a network and names what it returns.

    Args:
        generator: the network to run.
        in_: positional arguments: a state key, or a list of keys and literals (``None`` is no value, lists nest).
        out: key for the result, or a list of keys for the leading entries of a returned tuple.
        grad: false runs the network in evaluation mode without recording gradients, and restores its mode afterwards.
        method: name of a method of the network to call in place of `forward`. It is called on the network itself, inside any
            wrapper for several processes, so its gradients are not averaged over processes.
        args: keyword arguments of the call, as literals.
        fp16: false runs this network in float32 where the rest of the step runs in mixed precision.
    """

    def __init__(
        self,
        *,
        generator: NetworkName,
        in_: StateIns,
        out: StateOuts,
        grad: bool = True,
        method: str | None = None,
        args: dict[str, Any] | None = None,
        fp16: bool = True,
    ) -> None:
        self.network = generator
        self.inputs = in_
        self.out = out
        self.grad = grad
        self.method = method
        self.arguments = dict(args or {})
        self.mixed_precision = fp16

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        network = context.network(self.network)
        function: Callable[..., Any] = network
        if self.method is not None:
            function = getattr(network.module if isinstance(network, DistributedDataParallel) else network, self.method)
        inputs = read_inputs(self.inputs, state)
        with contextlib.ExitStack() as stack:
            if not self.grad:
                stack.callback(torch.clear_autocast_cache)  # older releases of torch reuse weights cast without gradients
                stack.enter_context(torch.no_grad())
                stack.enter_context(evaluation_mode(network))
            if not self.mixed_precision:
                inputs = _to_float32(inputs)
                stack.enter_context(_full_precision(network))
            return _run(self.network, function, inputs, self.arguments, self.inputs, self.out)


@INJECTORS.register("discriminator")
class DiscriminatorInjector(Injector):
    """Runs a discriminator.

    Args:
        discriminator: the network to run.
        in_: a state key or a list of them: the positional arguments.
        out: key for the result, or a list of keys for the leading entries of a returned tuple.
    """

    def __init__(self, *, discriminator: NetworkName, in_: StateIns, out: StateOuts) -> None:
        self.network = discriminator
        self.inputs = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        inputs = read_inputs(self.inputs, state)
        return _run(self.network, context.network(self.network), inputs, {}, self.inputs, self.out)


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Puts a network in evaluation mode, and afterwards each of its modules back into the mode that it had.

    ``network.train()`` would not do for the way back: it would also wake layers that are kept in evaluation mode on purpose.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _run(
    name: str, function: Callable[..., Any], inputs: list[Any], arguments: dict[str, Any], keys: Any, out: str | list[str]
) -> dict[str, Tensor]:
    try:
        return name_outputs(out, function(*inputs, **arguments))
    except (RuntimeError, ValueError) as error:
        # A subclass has a meaning of its own (out of memory, a lost process) that callers may act on.
        if type(error) not in (RuntimeError, ValueError):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        given = keys if isinstance(keys, list | tuple) else [keys]
        described = ", ".join(f"{key}: {_describe(value)}" for key, value in zip(given, inputs, strict=True))
        raise TrainingError(
            f"network '{name}' cannot work on its inputs ({described}): {error} [{frame.filename}:{frame.lineno}]; "
            f"check 'in' and 'out' of the injector that writes {out}, and the sizes that the network is built for"
        ) from error


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_describe, value))}]"
    return repr(value)


def _to_float32(values: Sequence[Any]) -> list[Any]:
    return [
        _to_float32(value)
        if isinstance(value, list | tuple)
        else (value.float() if isinstance(value, Tensor) and value.is_floating_point() else value)
        for value in values
    ]


def _full_precision(network: nn.Module) -> contextlib.AbstractContextManager[Any]:
    device = next((parameter.device.type for parameter in network.parameters()), "cpu")
    return torch.autocast(device, enabled=False)
