"""Averages of values that are still on the device, read once per log line."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Meter:
    """Collects scalar tensors without waiting for the device; `read` waits once for all of them."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._weights: dict[str, list[float]] = {}

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Adds a detached scalar; `weight` is the micro-batch's share."""
        if name not in self._values:
            self._values[name], self._weights[name] = [], []
        self._values[name].append(value)
        self._weights[name].append(weight)

    def mark(self) -> dict[str, int]:
        """How much there is of each name, for `rewind`."""
        return {name: len(values) for name, values in self._values.items()}

    def rewind(self, mark: Mapping[str, int]) -> None:
        """Takes back all that was added since `mark`."""
        self._values = {name: self._values[name][:count] for name, count in mark.items()}
        self._weights = {name: self._weights[name][:count] for name, count in mark.items()}

    def read(self) -> dict[str, float]:
        """The weighted mean of each name since the last call."""
        names = list(self._values)
        if not names:
            return {}
        flat = torch.stack([value.float() for name in names for value in self._values[name]]).tolist()
        means, start = {}, 0
        for name in names:
            weights = self._weights[name]
            values = flat[start : start + len(weights)]
            means[name] = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
            start += len(weights)
        self._values.clear()
        self._weights.clear()
        return means
