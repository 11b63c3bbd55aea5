"""Keeps each loss's share of the gradient at one place of a step, whatever the scales of the losses are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlas.config.schema import BalanceConfig
from dlas.engine.distributed import Ranks
from dlas.engine.meter import Meter
from dlas.errors import ConfigurationError, TrainingError

_EPS = 1e-12


class Weighted(NamedTuple):
    """A loss that is on: its name, the weight in the file, and its value, averaged over the micro-batch."""

    name: str
    weight: float
    value: Tensor


class Balancer:
    """Turns weights of losses into shares of the gradient at a state key.

    With g_i the gradient of loss i at the key, n_i the running average of its norm (that of a sample's own loss, averaged over
    samples) and w_i its weight, loss i is multiplied by total * w_i / (sum of w) / n_i. Then the gradients at the key are
    sum_i of total * (w_i / sum of w) * g_i / n_i. Losses that do not depend on the key keep their weights. Nothing waits for
    the device.

    The average is exact for its history: sum of decay^k n over sum of decay^k. In runs with micro-batches each moves it by its
    share of the batch, so how the batch is cut changes results a little.

    Args:
        config: the section `balance` of a step.
        step: name of the step.
        losses: names of its losses.

    Raises:
        ConfigurationError: an excluded loss is not there.

    Source: Défossez et al., "High Fidelity Neural Audio Compression", 2022, section 3.4.
    """

    def __init__(self, config: BalanceConfig, step: str, losses: Sequence[str]) -> None:
        unknown = [name for name in config.exclude if name not in losses]
        if unknown:
            raise ConfigurationError(f"steps.{step}.balance.exclude: the step has no loss '{unknown[0]}'")
        self.config = config
        self.step = step
        self.ranks = Ranks.current()
        self.norms: dict[str, Tensor] = {}
        """By loss: the decayed sums of norms and of ones, (2,), float32."""

    def weights(
        self, losses: Sequence[Weighted], state: Mapping[str, Any], share: float, meter: Meter, scale: Tensor | None = None
    ) -> list[Tensor | float]:
        """What each loss is to be multiplied with; moves the averages and logs `<step>/<loss>_share`.

        Args:
            losses: those that are on.
            state: holds the key.
            share: of the micro-batch in its batch.
            meter: takes the shares as they were in this micro-batch.
            scale: factor on losses before gradients are taken, which keeps small ones in float16; norms are divided by it.

        Raises:
            TrainingError: no gradient is recorded at the key.
        """
        anchor = state[self.config.at]
        if not isinstance(anchor, Tensor) or not anchor.requires_grad:
            raise TrainingError(
                f"steps.{self.step}.balance: no gradient is recorded at '{self.config.at}'; name what a network of this step "
                "writes, and let it be trained here"
            )
        balanced = [each for each in losses if each.name not in self.config.exclude and each.value.requires_grad]
        norms: dict[str, Tensor] = {}
        for each in balanced:
            norm = self._norm(each.value, anchor, scale)
            if norm is not None:
                norms[each.name] = norm
        norms = self._over_ranks(norms)
        sum_of_weights = sum(each.weight for each in balanced if each.name in norms)
        factors: dict[str, Tensor] = {}
        for each in balanced:
            if each.name in norms:
                target = self.config.total * each.weight / sum_of_weights
                factors[each.name] = target / (self._average(each.name, norms[each.name], share) + _EPS)
        self._log({name: norms[name] * factor for name, factor in factors.items()}, share, meter)
        return [factors.get(each.name, each.weight) for each in losses]

    @staticmethod
    def _norm(value: Tensor, anchor: Tensor, scale: Tensor | None) -> Tensor | None:
        scaled = value if scale is None else value * scale
        (gradient,) = torch.autograd.grad(scaled, anchor, retain_graph=True, allow_unused=True)
        if gradient is None:
            return None
        # The loss is a mean over samples: times their number, a row is the gradient of that sample's own loss.
        norm = gradient.detach().float().flatten(1).norm(dim=1).mean() * len(gradient)
        return norm if scale is None else norm / scale

    def _over_ranks(self, norms: dict[str, Tensor]) -> dict[str, Tensor]:
        if not norms or not self.ranks.many:
            return norms
        means = self.ranks.mean_(torch.stack(list(norms.values())))
        return dict(zip(norms, means.unbind(), strict=True))

    def _average(self, name: str, norm: Tensor, share: float) -> Tensor:
        decay = self.config.decay**share
        sums = self.norms.get(name)
        if sums is None:
            sums = self.norms[name] = torch.zeros(2, device=norm.device)
        moved = sums.to(norm.device) * decay + share * torch.stack([norm, torch.ones_like(norm)])
        # One gradient that is not finite must not be remembered.
        self.norms[name] = torch.where(norm.isfinite(), moved, sums)
        return self.norms[name][0] / self.norms[name][1]

    def _log(self, contributions: Mapping[str, Tensor], share: float, meter: Meter) -> None:
        if not contributions:
            return
        total = torch.stack(list(contributions.values())).sum()
        for name, contribution in contributions.items():
            meter.add(f"{self.step}/{name}_share", contribution / total, share)
