"""Averages of values that are still on the device, read once per log line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Value(NamedTuple):
    """A figure of one micro-batch, and the share of the batch that it speaks for."""

    name: str
    value: Tensor
    weight: float


class Meter:
    """Collects scalar tensors without waiting for the device; `read` waits once for all of them.

    Values count as good unless somebody takes them out (`take`) and does not bring them back (`accept`).
    """

    def __init__(self) -> None:
        self._values: list[Value] = []
        self._new: list[Value] = []

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Adds a detached scalar; `weight` is the micro-batch's share."""
        self._new.append(Value(name, value, weight))

    def take(self) -> list[Value]:
        """Takes out what was added since the last call."""
        taken, self._new = self._new, []
        return taken

    def accept(self, values: Iterable[Value]) -> None:
        """Takes values into the averages."""
        self._values += values

    def read(self) -> dict[str, float]:
        """The weighted mean of each name since the last call."""
        self.accept(self.take())
        values, self._values = self._values, []
        return self.means(values)

    @staticmethod
    def means(values: list[Value]) -> dict[str, float]:
        """The weighted mean of each name; waits for the device once."""
        if not values:
            return {}
        sums: dict[str, list[float]] = {}
        for each, number in zip(values, torch.stack([each.value.float() for each in values]).tolist(), strict=True):
            total = sums.setdefault(each.name, [0.0, 0.0])
            total[0] += number * each.weight
            total[1] += each.weight
        return {name: total / weight for name, (total, weight) in sums.items()}
