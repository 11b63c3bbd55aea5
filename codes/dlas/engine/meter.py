"""Averages of values that are still on the device, read once per log line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        if not self._values:
            return {}
        flat = self._flat().tolist()
        means, start = {}, 0
        for name, weights in self._weights.items():
            values = flat[start : start + len(weights)]
            means[name] = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
            start += len(weights)
        self._values.clear()
        self._weights.clear()
        return means

    def state_dict(self) -> dict[str, Any]:
        """All that was added since the last `read`, for a checkpoint; empty if nothing was. Does not wait for the device."""
        if not self._values:
            return {}
        return {"weights": {name: list(weights) for name, weights in self._weights.items()}, "values": self._flat()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from a `state_dict`: the next `read` gives the bits that it would have given there."""
        self._weights = {name: list(weights) for name, weights in state.get("weights", {}).items()}
        values = iter(state["values"].to(device).unbind() if self._weights else ())
        self._values = {name: [next(values) for _ in weights] for name, weights in self._weights.items()}

    def _flat(self) -> Tensor:
        return torch.stack([value.float() for values in self._values.values() for value in values])
