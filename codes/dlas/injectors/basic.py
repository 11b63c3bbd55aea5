"""Injectors that copy, join and reshape entries of the state."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context, mix_seed
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import PositiveInt, StateIn, StateOut


@INJECTORS.register("direct")
class DirectInjector(Injector):
    """Gives an entry a second name.

    Args:
        in_: the entry.
        out: its other name.
    """

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.input = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: state[self.input]}


@INJECTORS.register("detach")
class DetachInjector(Injector):
    """The same values, through which no gradient flows.

    Args:
        in_: the tensor.
        out: its detached view.
    """

    detaches = True

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.input = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: state[self.input].detach()}


@INJECTORS.register("to_device")
class ToDeviceInjector(Injector):
    """Moves a tensor to another device.

    Args:
        in_: the tensor.
        out: the tensor on `device`.
        device: ``cpu``, ``cuda:1``, ... Moving to ``cpu`` waits for the accelerator.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, device: str) -> None:
        self.input = in_
        self.out = out
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise ConfigurationError(f"to_device: '{device}' is no device; for instance 'cpu' or 'cuda:0'") from error

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        # A copy to the CPU that does not wait could be read before it has arrived.
        return {self.out: state[self.input].to(self.device, non_blocking=self.device.type != "cpu")}


@INJECTORS.register("constant")
class ConstantInjector(Injector):
    """A tensor of one value.

    Args:
        like: tensor that gives shape, type and device.
        out: the constant tensor.
        constant_type: ``zeroes``, ``ones``, or ``value`` with the number in `value`.
        value: the number (with ``value``, and only there).
    """

    detaches = True

    def __init__(
        self,
        *,
        like: StateIn,
        out: StateOut,
        constant_type: Literal["zeroes", "ones", "value"] = "zeroes",
        value: float | None = None,
    ) -> None:
        if (constant_type == "value") != (value is not None):
            raise ConfigurationError(
                f"constant: constant_type {constant_type} {'needs' if value is None else 'takes no'} 'value'"
            )
        self.like = like
        self.out = out
        self.value = value if value is not None else float(constant_type == "ones")

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: torch.full_like(state[self.like], self.value)}


@INJECTORS.register("concatenate")
class ConcatenateInjector(Injector):
    """Joins tensors along a dimension.

    Args:
        in_: keys of the tensors.
        out: the joined tensor.
        dim: the dimension along which they follow each other.
    """

    def __init__(self, *, in_: list[StateIn], out: StateOut, dim: int) -> None:
        self.inputs = in_
        self.out = out
        self.dim = dim

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: torch.cat([state[key] for key in self.inputs], dim=self.dim)}


@INJECTORS.register("pad")
class PadInjector(Injector):
    """Appends zeros to the last dimension until its size is a multiple; nothing where it is one already.

    (DL-Art-School appends one whole multiple in that case; this is not kept.)

    Args:
        in_: tensor of any shape.
        out: the padded tensor.
        multiple: the size's divisor.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, multiple: PositiveInt) -> None:
        self.input = in_
        self.out = out
        self.multiple = multiple

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tensor = state[self.input]
        return {self.out: F.pad(tensor, (0, -tensor.shape[-1] % self.multiple))}


@INJECTORS.register("batch_rotate")
class BatchRotateInjector(Injector):
    """Moves every sample of the micro-batch on by one place; the last becomes the first.

    Args:
        in_: (B, ...).
        out: (B, ...): sample b is the input's sample b - 1.
    """

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.input = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: torch.roll(state[self.input], 1, dims=0)}


@INJECTORS.register("decompose_dimension")
class DecomposeDimensionInjector(Injector):
    """Moves a dimension into the batch, for networks that know nothing of it: (B, ..., N, ...) to (N B, ...).

    Entry ``n * B + b`` of the result is slice n of sample b. `recompose_dimension` undoes it with the two further entries that
    are written, ``<out>_reverse_shape`` and ``<out>_reverse_permute``.

    Args:
        in_: (B, ..., N, ...).
        out: (N B, ...).
        dim: the dimension; not the batch.
        cutoff_dim: keep only this many leading entries of the new batch (which cannot be recomposed then); -1 keeps all.
    """

    derived_outputs = ("{out}_reverse_shape", "{out}_reverse_permute")

    def __init__(self, *, in_: StateIn, out: StateOut, dim: PositiveInt, cutoff_dim: int = -1) -> None:
        self.input = in_
        self.out = out
        self.dim = dim
        self.cutoff = None if cutoff_dim < 0 else cutoff_dim
        self.shape_key, self.permute_key = (template.format(out=out) for template in self.derived_outputs)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tensor = state[self.input]
        moved = tensor.movedim(self.dim, 0)
        order = [*range(1, self.dim + 1), 0, *range(self.dim + 1, tensor.ndim)]
        return {
            self.out: moved.flatten(0, 1)[: self.cutoff],
            self.shape_key: list(moved.shape),
            self.permute_key: order,
        }


@INJECTORS.register("recompose_dimension")
class RecomposeDimensionInjector(Injector):
    """Undoes `decompose_dimension`. Sizes behind the batch may have changed in between, their number may not.

    Args:
        in_: (N B, ...).
        out: (B, ..., N, ...).
        reverse_shape: the entry that `decompose_dimension` wrote.
        reverse_permute: the entry that `decompose_dimension` wrote.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, reverse_shape: StateIn, reverse_permute: StateIn) -> None:
        self.input = in_
        self.out = out
        self.reverse_shape = reverse_shape
        self.reverse_permute = reverse_permute

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tensor: Tensor = state[self.input]
        moved = tensor.unflatten(0, state[self.reverse_shape][:2])
        return {self.out: moved.permute(state[self.reverse_permute])}


@INJECTORS.register("for_each")
class ForEachInjector(Injector):
    """Applies another injector to every ``x[:, i]`` and stacks the results.

    The other injector reads ``_in`` and writes ``_out``; these are filled in for its options `in` and `out`.

    Args:
        in_: (B, N, ...).
        out: (B, N, ...), or a list of N tensors (B, ...).
        subtype: the other injector's type; all further options are its own.
        aslist: give a list.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, subtype: str, aslist: bool = False, **options: Any) -> None:
        self.input = in_
        self.out = out
        self.aslist = aslist
        self.injector: Injector = INJECTORS.create(subtype, {**options, "in": "_in", "out": "_out"})

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        results = []
        for index, part in enumerate(state[self.input].unbind(dim=1)):
            # Random injectors name their streams by their output, which is `_out` each time: give each part a seed of its own.
            local = dataclasses.replace(context, seed=mix_seed(context.seed, f"for_each:{self.out}", index))
            results.append(self.injector({**state, "_in": part}, local)["_out"])
        return {self.out: results if self.aslist else torch.stack(results, dim=1)}
