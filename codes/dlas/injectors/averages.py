"""Running a network with the average of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call

from dlas.context import Context, ShardedAverages
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State, name_outputs, read_inputs
from dlas.injectors.networks import evaluation_mode
from dlas.registry import INJECTORS
from dlas.types import NetworkName, StateIns, StateOuts


def averaged(context: Context, name: str, user: str) -> Callable[..., Any]:
    """A network with the running average of its weights; in evaluation as it is, which `eval.weights` has decided.

    Args:
        context: of the step.
        name: of the network.
        user: who asks, for messages.

    Raises:
        ConfigurationError: the run keeps no average of it.
    """
    network = context.network(name)
    if not context.training:
        return network
    if name not in context.averages:
        raise ConfigurationError(
            f"{user}: the run keeps no average of '{name}': set train.ema.enabled, and let a step train it"
        )
    averages = context.averages[name]
    if isinstance(averages, ShardedAverages):
        return averages.run
    tensors = averages.tensors()
    return lambda *inputs, **options: functional_call(network, tensors, inputs, options)


@INJECTORS.register("generator_ema")
class GeneratorEmaInjector(Injector):
    """Runs a network with the running average of its weights (`train.ema`), without gradients and in evaluation mode.

    Its output is steadier than the network's own: the reference of the loss `ldl`. In evaluation it writes what the network
    gives as it is: there the averaged weights are in place already where `eval.weights` asks for them.

    Args:
        generator: the network to run.
        in_: positional arguments: a state key, or a list of keys and literals (``None`` is no value, lists nest).
        out: key for the result, or a list of keys for the leading entries of a returned tuple.
    """

    detaches = True
    averages = ()

    def __init__(self, *, generator: NetworkName, in_: StateIns, out: StateOuts) -> None:
        self.network = generator
        self.inputs = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        network = context.network(self.network)
        inputs = tuple(read_inputs(self.inputs, state))
        with torch.no_grad(), evaluation_mode(network):
            return name_outputs(self.out, averaged(context, self.network, "generator_ema")(*inputs))
