"""Timesteps drawn the more often, the larger their losses are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dlas.diffusion.processes import Process
from dlas.diffusion.times import Drawn, Times
from dlas.errors import ConfigurationError
from dlas.host import sent
from dlas.registry import TIMES
from dlas.types import Fraction, PositiveInt


@TIMES.register("loss_second_moment", "loss-second-moment")
class LossSecondMoment(Times):
    """Timesteps with a probability that is proportional to the root mean square of their last losses.

    Losses are weighted so that their expectation stays that of evenly drawn timesteps. Timesteps are drawn evenly until each
    was seen `history` times.

    Args:
        history: losses that are kept of each timestep.
        uniform_prob: share of the timesteps that is drawn evenly all the same.

    Source: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 18.
    """

    def __init__(self, *, history: PositiveInt = 10, uniform_prob: Fraction = 0.001) -> None:
        self.history, self.uniform_prob = history, uniform_prob
        self._losses: Tensor | None = None  # (T + 1, history), float64; the last row takes what is not to be kept
        self._seen: Tensor | None = None  # (T,), how often each timestep was observed

    def probabilities(self) -> Tensor:
        """Of each timestep: (T,), float64; the sum is 1."""
        losses, seen = self._memory()
        moments = losses[:-1].square().mean(1).sqrt()
        even = 1 / len(seen)
        learned = moments / moments.sum() * (1 - self.uniform_prob) + self.uniform_prob * even
        warm = (seen >= self.history).all() & (moments.sum() > 0)
        return torch.where(warm, learned, torch.full_like(learned, even))

    def draw(self, process: Process, uniform: Tensor, step: int) -> Drawn:
        """See `Times`.

        Raises:
            ConfigurationError: the process has no timesteps, or other ones than before.
        """
        if not process.discrete:
            raise ConfigurationError(
                "times loss_second_moment: the process has no timesteps; "
                "take process vp, or times uniform, log_normal or logit_normal"
            )
        self._place(process.steps, uniform.device)
        probabilities = self.probabilities()
        bounds = probabilities.cumsum(0)
        times = torch.searchsorted(bounds, uniform.double() * bounds[-1], right=True).clamp(max=process.steps - 1)
        return Drawn(times, 1 / (process.steps * probabilities[times]))

    def observe(self, times: Tensor, losses: Tensor) -> None:
        """See `Times`; a timestep's losses that come together count in their order, and those that are not finite do not."""
        stored, seen = self._memory()
        times, finite = times.long().to(seen.device), losses.isfinite()
        same = (times.unsqueeze(1) == times.unsqueeze(0)) & finite.unsqueeze(0)
        earlier, later = same.tril(-1).sum(1), same.triu(1).sum(1)
        kept = finite & (later < self.history)  # more at once than are kept: the last ones stay
        rows = torch.where(kept, times, len(seen))
        stored[rows, (seen[times] + earlier) % self.history] = losses.detach().to(stored)
        seen += same.new_zeros(len(seen), dtype=seen.dtype).scatter_add(0, times, finite.to(times.dtype))

    def state_dict(self) -> dict[str, Tensor]:
        """Losses (T, history) and how often timesteps were seen (T,); nothing before the first draw."""
        if self._losses is None or self._seen is None:
            return {}
        return {"losses": self._losses[:-1].clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Times`.

        Raises:
            ConfigurationError: another number of losses was kept of each timestep.
        """
        if not state:
            self._losses = self._seen = None
            return
        losses = state["losses"].double()
        if losses.shape[1] != self.history:
            raise ConfigurationError(
                f"times loss_second_moment: the checkpoint has {losses.shape[1]} losses of each timestep, "
                f"history is {self.history}; set history: {losses.shape[1]}"
            )
        self._losses = torch.cat((losses, losses.new_zeros(1, self.history)))
        self._seen = state["seen"].clone()

    def _memory(self) -> tuple[Tensor, Tensor]:
        if self._losses is None or self._seen is None:
            raise RuntimeError("no timesteps were drawn yet")
        return self._losses, self._seen

    def _place(self, steps: int, device: torch.device) -> None:
        if self._losses is None or self._seen is None:
            self._losses = torch.zeros(steps + 1, self.history, dtype=torch.float64, device=device)
            self._seen = torch.zeros(steps, dtype=torch.int64, device=device)
        elif len(self._seen) != steps:
            raise ConfigurationError(
                f"times loss_second_moment: losses of {len(self._seen)} timesteps are kept, but the process has {steps}; "
                "begin anew, or keep the process"
            )
        self._losses, self._seen = sent(self._losses, device), sent(self._seen, device)
