"""Injectors that compute element by element."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

import torch

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State, read_inputs
from dlas.registry import INJECTORS
from dlas.types import StateIn, StateIns, StateOut

_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}


@INJECTORS.register("arithmetic")
class ArithmeticInjector(Injector):
    """One operation over tensors and numbers, from left to right: ``((a ∘ b) ∘ c)``.

    Args:
        in_: at least two operands, each a state key or a number; shapes broadcast.
        out: the result.
        operation: what to do with them.

    Example:
        in: [hq, gen]
        out: residual
        operation: subtract
    """

    def __init__(self, *, in_: StateIns, out: StateOut, operation: Literal["add", "subtract", "multiply", "divide"]) -> None:
        if not isinstance(in_, list | tuple) or len(in_) < 2:
            raise ConfigurationError(f"arithmetic: 'in' needs at least two operands in a list, given: {in_}")
        self.inputs = in_
        self.out = out
        self.operation = _OPERATIONS[operation]

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: reduce(self.operation, read_inputs(self.inputs, state))}


@INJECTORS.register("normalize")
class NormalizeInjector(Injector):
    """``(x - shift) / scale``.

    Args:
        in_: tensor of any shape.
        out: tensor of the same shape.
        shift: subtracted.
        scale: divided by; not 0.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, shift: float, scale: float) -> None:
        if scale == 0:
            raise ConfigurationError("normalize: scale must not be 0")
        self.input = in_
        self.out = out
        self.shift = shift
        self.scale = scale

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: (state[self.input] - self.shift) / self.scale}


@INJECTORS.register("denormalize")
class DenormalizeInjector(Injector):
    """``x * scale + shift``: undoes `normalize` of the same options.

    Args:
        in_: tensor of any shape.
        out: tensor of the same shape.
        shift: added after scaling.
        scale: multiplied by.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, shift: float, scale: float) -> None:
        self.input = in_
        self.out = out
        self.shift = shift
        self.scale = scale

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: state[self.input] * self.scale + self.shift}


@INJECTORS.register("clamp")
class ClampInjector(Injector):
    """Limits values to ``[min, max]``.

    Args:
        in_: tensor of any shape.
        out: tensor of the same shape.
        min_: lowest value; none has no lower limit.
        max_: highest value; none has no upper limit.

    Example:
        in: gen
        out: gen_in_range
        min: 0
        max: 1
    """

    def __init__(self, *, in_: StateIn, out: StateOut, min_: float | None = None, max_: float | None = None) -> None:
        if min_ is None and max_ is None:
            raise ConfigurationError("clamp: give 'min', 'max' or both")
        low, high = -math.inf if min_ is None else min_, math.inf if max_ is None else max_
        if low > high:
            raise ConfigurationError(f"clamp: min {low} is above max {high}")
        self.input = in_
        self.out = out
        self.limits = (min_, max_)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: torch.clamp(state[self.input], *self.limits)}


@INJECTORS.register("grey")
class GreyInjector(Injector):
    """The mean of the channels in each of three channels.

    Args:
        in_: (B, C, H, W).
        out: (B, 3, H, W).
    """

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.input = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: state[self.input].mean(dim=1, keepdim=True).repeat(1, 3, 1, 1)}


@INJECTORS.register("sr_diffs")
class SrDiffsInjector(Injector):
    """The residual between an upsampled low-resolution image and the true one, or the way back.

    Args:
        mode: ``produce_diff``: diff = hq - lq and out = lq and diff side by side in the channels. ``recombine``: out = lq + hq,
            where `hq` is the key of a residual.
        lq: (B, C, H, W), already of the size of `hq`.
        hq: (B, C, H, W).
        out: the result.
        diff: key for the residual (needed by ``produce_diff``, not used by ``recombine``).
        include_combined: ``produce_diff`` also puts `hq` into `out`, as the last channels.

    Example:
        mode: produce_diff
        lq: lq_enlarged
        hq: hq
        out: combined
        diff: diff
    """

    def __init__(
        self,
        *,
        mode: Literal["produce_diff", "recombine"],
        lq: StateIn,
        hq: StateIn,
        out: StateOut,
        diff: StateOut | None = None,
        include_combined: bool = False,
    ) -> None:
        if (mode == "produce_diff") != (diff is not None):
            raise ConfigurationError(f"sr_diffs: mode {mode} {'needs' if diff is None else 'writes no'} 'diff'")
        self.lq = lq
        self.hq = hq
        self.out = out
        self.diff = diff
        self.include_combined = include_combined

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        lq, hq = state[self.lq], state[self.hq]
        if self.diff is None:
            return {self.out: lq + hq}
        diff = hq - lq
        parts = [lq, diff, hq] if self.include_combined else [lq, diff]
        return {self.out: torch.cat(parts, dim=1), self.diff: diff}
