"""A robust running score that says how far a value lies above what it was lately. Everything stays on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_TO_DEVIATION = 1.4826  # of a normal distribution, over its median absolute deviation
_SMALLEST = 0.01  # of the median: the least that counts as a deviation, for values that hardly vary


class SpikeWindow:
    """The last finite values of each of several series, and the score of new ones::

        score = max over the series of (x - median) / max(1.4826 MAD, 0.01 |median|)

    Median and median absolute deviation do not mind outliers as long as they are fewer than half, so values enter as they are:
    a lone spike changes nothing, and a level that lasts is the new normal after half a window at most. Until half a window is
    there the score is 0.

    Args:
        series: number of series.
        size: values kept of each.
        device: where.
    """

    def __init__(self, series: int, size: int, device: torch.device) -> None:
        self.values = torch.full((series, size), torch.nan, device=device)
        self.count = torch.zeros((), device=device)  # values taken so far

    def score(self, values: Tensor) -> Tensor:
        """Score of one value of each series, (series,) -> (); not finite if a value is not."""
        median = _median(self.values)
        deviation = _median((self.values - median[:, None]).abs())
        scale = torch.maximum(_TO_DEVIATION * deviation, _SMALLEST * median.abs()).clamp(min=torch.finfo(torch.float32).tiny)
        scores = (values - median) / scale
        return torch.where(self.count >= self.values.shape[1] // 2, scores.amax(), 0.0)

    def take(self, values: Tensor, accepted: Tensor) -> None:
        """Puts one value of each series into the window, if `accepted` (a truth value on the device)."""
        size = self.values.shape[1]
        here = (torch.arange(size, device=self.values.device) == self.count % size) & accepted
        self.values = torch.where(here, values[:, None], self.values)
        self.count = self.count + accepted


class SpikeScore:
    """Scores of a step's loss and gradient norm. Each set of losses that are on together has a window of its own.

    Args:
        threshold: a score above it is a spike.
        size: of a window.
        loss: watch the step's total loss.
        gradient: watch its gradient norm.
        device: where.
    """

    def __init__(self, threshold: float, size: int, *, loss: bool, gradient: bool, device: torch.device) -> None:
        self.threshold = threshold
        self.size = size
        self.loss = loss
        self.gradient = gradient
        self.device = device
        self.windows: dict[str, SpikeWindow] = {}
        self.worst = torch.zeros((), device=device)  # largest score since `read_worst`

    def values(self, loss: Tensor, norm: Tensor | None) -> Tensor:
        """What is watched, as one tensor."""
        chosen = [loss] if self.loss else []
        if self.gradient:
            assert norm is not None
            chosen.append(norm)
        return torch.stack([value.float() for value in chosen])

    def judge(self, losses: str, values: Tensor, accepted: Tensor) -> Tensor:
        """Whether an update spikes (), 0 or 1; its values enter the window if they are finite and it is accepted.

        Args:
            losses: names of the losses that are on.
            values: from `values`.
            accepted: truth value on the device.
        """
        if losses not in self.windows:
            self.windows[losses] = SpikeWindow(len(values), self.size, self.device)
        window = self.windows[losses]
        accepted = accepted & values.isfinite().all()
        score = torch.where(accepted, window.score(values), 0.0)
        window.take(values, accepted)
        self.worst = torch.maximum(self.worst, score)
        return (score > self.threshold).float()

    def read_worst(self) -> float:
        """The largest score since the last call."""
        worst = float(self.worst)
        self.worst = torch.zeros((), device=self.device)
        return worst

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        windows = {losses: {"values": w.values, "count": w.count} for losses, w in self.windows.items()}
        return {"windows": windows, "worst": self.worst}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`; windows of another size or of other series begin anew."""
        self.windows = {}
        for losses, saved in state["windows"].items():
            window = SpikeWindow(self.loss + self.gradient, self.size, self.device)
            if saved["values"].shape == window.values.shape:
                window.values = saved["values"].to(self.device, copy=True)
                window.count = saved["count"].to(self.device, copy=True)
                self.windows[losses] = window
        self.worst = state["worst"].to(self.device, copy=True)


def _median(values: Tensor) -> Tensor:
    """Lower median of each row, of what is not NaN. torch's own refuses deterministic mode on a GPU."""
    last = (values.isfinite().sum(dim=1, keepdim=True) - 1).clamp(min=0)
    return values.sort(dim=1).values.gather(1, last // 2)[:, 0]
