"""Values made of weights, kept for as long as the weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """The last value made, and which weights it was made of.

    A change in place (an optimiser's step, loading) counts up a weight's version; moved or replaced ones lie elsewhere. Copies
    begin empty.
    """

    def __init__(self) -> None:
        self._made_of: tuple[Any, ...] | None = None
        self._value: Value | None = None

    def get(self, weights: Sequence[Tensor], make: Callable[[], Value]) -> Value:
        """What `make` returns for these weights. It is called every time where gradients are to go through it."""
        if (
            (torch.is_grad_enabled() and any(weight.requires_grad for weight in weights))
            or any(weight.is_inference() for weight in weights)  # these do not count their versions
            or any(isinstance(weight, FakeTensor) for weight in weights)  # these lie nowhere
            or torch.compiler.is_compiling()
        ):
            return make()
        made_of = tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
        if made_of != self._made_of or self._value is None:
            # Not as inference tensors: these could not take part in a later pass with gradients.
            with torch.inference_mode(False), torch.no_grad():
                self._value = make()
            self._made_of = made_of
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept[Value]:
        return Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()
