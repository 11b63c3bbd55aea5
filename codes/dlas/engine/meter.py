"""Averages of values that are still on the device, read once per log line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlas.engine.distributed import Ranks


class Value(NamedTuple):
    """A figure of one micro-batch, and the share of the batch that it speaks for: a number, or a scalar on the device."""

    name: str
    value: Tensor
    weight: float | Tensor


class Meter:
    """Collects scalar tensors without waiting for the device; `read` waits once for all of them.

    Values count as good unless somebody takes them out (`take`) and does not bring them back (`accept`).

    Args:
        ranks: the processes over whose values averages are taken. All of them must read, and take states, together.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self._values: list[Value] = []
        self._new: list[Value] = []

    def add(self, name: str, value: Tensor, weight: float | Tensor = 1.0) -> None:
        """Adds a detached scalar; `weight` is the micro-batch's share. Without any weight a name is not reported."""
        self._new.append(Value(name, value, weight))

    def take(self) -> list[Value]:
        """Takes out what was added since the last call."""
        taken, self._new = self._new, []
        return taken

    def accept(self, values: Iterable[Value]) -> None:
        """Takes values into the averages."""
        self._values += values

    def mark(self) -> int:
        """How much has been added, for `rewind`."""
        return len(self._new)

    def rewind(self, mark: int) -> None:
        """Takes back all that was added since `mark`."""
        del self._new[mark:]

    def read(self) -> dict[str, float]:
        """The weighted mean of each name since the last call."""
        self.accept(self.take())
        values, self._values = self._values, []
        return self.means(values)

    def state_dict(self) -> dict[str, Any]:
        """All that was added since the last `read`, for a checkpoint; empty if nothing was.

        Does not wait for the device, unless there are several processes: it is that of all of them then.
        """
        values = [*self._values, *self._new]
        if self.ranks.many:
            own = [(name, value.cpu(), w.cpu() if isinstance(w, Tensor) else w) for name, value, w in values]
            values = [Value(*each) for others in self.ranks.gather(own) for each in others]
        if not values:
            return {}
        numbers = [None if isinstance(each.weight, Tensor) else each.weight for each in values]
        return {"names": [each.name for each in values], "weights": numbers, "values": _flat(values)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from a `state_dict`: the next `read` gives the bits that it would have given there."""
        self._new, self._values = [], []
        if not self.ranks.main:  # the first process has the values of all
            return
        names, numbers = state.get("names", []), state.get("weights", [])
        flat = state["values"].to(device).unbind() if state else ()
        weights = iter(flat[len(names) :])
        self._values = [
            Value(name, value, next(weights) if number is None else number)
            for name, value, number in zip(names, flat[: len(names)], numbers, strict=True)
        ]

    def means(self, values: list[Value]) -> dict[str, float]:
        """The weighted mean of each name over all processes; waits for the device once."""
        sums: dict[str, list[float]] = {}
        for name, number, weight in (each for own in self.ranks.gather(_read(values)) for each in own):
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += number * weight
            total[1] += weight
        return {name: total / weight for name, (total, weight) in sums.items() if weight != 0}


def _read(values: list[Value]) -> list[tuple[str, float, float]]:
    """Name, value and weight as numbers of the host."""
    flat = _flat(values).tolist() if values else []
    weights = iter(flat[len(values) :])
    return [
        (each.name, number, next(weights) if isinstance(each.weight, Tensor) else each.weight)
        for each, number in zip(values, flat[: len(values)], strict=True)
    ]


def _flat(values: list[Value]) -> Tensor:
    """All values, and behind them the weights that are on the device."""
    weights = [each.weight for each in values if isinstance(each.weight, Tensor)]
    tensors = [*(each.value for each in values), *weights]
    return torch.stack([tensor.float().to(tensors[0].device) for tensor in tensors])
