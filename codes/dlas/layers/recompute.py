"""Recomputing activations in the backward pass in place of keeping them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recompute(function: Callable[..., Tensor], *inputs: Tensor | None, when: bool, random: bool = False) -> Tensor:
    """Calls a function, and computes it a second time in the backward pass in place of keeping what happened within.

    Args:
        function: of tensors, one tensor.
        inputs: its arguments.
        when: whether to recompute; where nothing is differentiated the function is called plainly in any case.
        random: it draws random numbers, which have to be the same the second time.

    Returns:
        The function's result.
    """
    if when and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random)
    return function(*inputs)
