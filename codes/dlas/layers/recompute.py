"""Recomputing activations in the backward pass in place of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Tensor], *inputs: Tensor | None, when: bool, random: bool = False) -> Tensor:
    """Calls a function, and computes it a second time in the backward pass in place of keeping what happened within.

    Args:
        function: of tensors, one tensor. If it is a module with batch normalisation, running statistics take the batch in once.
        inputs: its arguments.
        when: whether to recompute; where nothing is differentiated the function is called plainly in any case.
        random: it draws random numbers, which have to be the same the second time.

    Returns:
        The function's result.
    """
    if when and torch.is_grad_enabled():
        layers = _batch_norms(function)
        more: dict[str, Any] = {"context_fn": lambda: (nullcontext(), _statistics_kept(layers))} if layers else {}
        result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random, **more)
        return result
    return function(*inputs)


def _batch_norms(function: Callable[..., Tensor]) -> list[_BatchNorm]:
    modules = function.modules() if isinstance(function, nn.Module) else ()
    return [module for module in modules if isinstance(module, _BatchNorm)]


@contextmanager
def _statistics_kept(layers: list[_BatchNorm]) -> Iterator[None]:
    """Running statistics do not move, whatever the layers see."""
    before = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer, _, batches in before:
        layer.momentum = 0.0
        layer.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for layer, momentum, batches in before:
            layer.momentum, layer.num_batches_tracked = momentum, batches
