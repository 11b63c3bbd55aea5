"""Training diffusion and flow models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dlas.context import Context, mix_seed
from dlas.diffusion import NetworkDenoiser, create_process, diffuse, target, to_x0
from dlas.diffusion.times import create_times, low_discrepancy
from dlas.diffusion.weightings import create_weighting
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import Fraction, NetworkName, ProcessOptions, StateIn, StateOut, TimesOptions, WeightingOptions


@INJECTORS.register("diffusion")
class DiffusionInjector(Injector):
    """The error of a denoising network: draws a time and noise for each sample, and compares its prediction with the truth.

    Times and noise depend on the seed of the run and the place of each sample in its order alone.

    Args:
        in_: the data, (B, C, ...), of about unit size: images in [-1, 1].
        out: the weighted squared error, (B,); the loss `direct` makes it the step's.
        generator: the network, called as network(x, times, **conditions).
        process: what times mean: `{type: vp, schedule: cosine}`, `{type: edm}`, `{type: flow}`.
        prediction: what the network predicts; `edm` suits `process: {type: edm}`, `velocity` suits flow.
        weighting: how much the error counts at which noise level.
        times: at which times it is trained.
        stratified: spread the times of a batch evenly, whatever its micro-batches and ranks: less noise in the gradient.
        conditions: further arguments of the network: {argument: state key}.
        drop_rate: share of the samples whose conditions are replaced by `unconditional`, which trains classifier-free guidance.
        unconditional: {argument: number}: what stands for no condition: a class label kept for this, 0 for vectors.
        out_x0: key for the data that the network sees.

    Raises:
        ConfigurationError: `drop_rate` without `unconditional`, or a `unconditional` of something that is no condition.
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        generator: NetworkName,
        process: ProcessOptions,
        prediction: Literal["eps", "x0", "v", "velocity", "edm"] = "eps",
        weighting: WeightingOptions | None = None,
        times: TimesOptions | None = None,
        stratified: bool = True,
        conditions: dict[str, StateIn] | None = None,
        drop_rate: Fraction = 0.0,
        unconditional: dict[str, float] | None = None,
        out_x0: StateOut | None = None,
    ) -> None:
        self.source = in_
        self.out = out
        self.network = generator
        self.process = create_process(process)
        self.prediction = prediction
        self.weighting = create_weighting(weighting or {"type": "uniform"})
        self.times = create_times(times or {"type": "uniform"})
        self.stratified = stratified
        self.conditions = dict(conditions or {})
        self.drop_rate = drop_rate
        self.unconditional = check_unconditional(unconditional, self.conditions, needed=drop_rate > 0)
        self.out_x0 = out_x0

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        x0: Tensor = state[self.source].float()
        conditions = {argument: state[key] for argument, key in self.conditions.items()}
        if self.drop_rate and context.training:
            dropped = context.rand((), f"{self.out}/drop", x0.device) < self.drop_rate
            conditions = without(conditions, self.unconditional, dropped)
        times, importance = self.times.draw(self.process, self._uniform(context, x0.device), context.step)
        eps = context.randn(x0.shape[1:], f"{self.out}/noise", x0.device)
        level = self.process.level(times)
        broad = level.like(x0)
        denoiser = NetworkDenoiser(context.network(self.network), self.process, self.prediction, conditions)
        x = diffuse(x0, eps, broad)
        output, _, _ = denoiser.predict(x, times)
        wanted = target(self.prediction, x0, eps, broad, self.process.sigma_data)
        error = (output - wanted).square().flatten(1).mean(dim=1)
        self.times.observe(times, error.detach())
        factor = self.weighting(level, self.prediction, self.process.sigma_data)
        if importance is not None:
            factor = factor * importance
        entries = {self.out: error * factor.to(error)}
        if self.out_x0 is not None:
            entries[self.out_x0] = to_x0(self.prediction, output, x, broad, self.process.sigma_data).detach()
        return entries

    def _uniform(self, context: Context, device: torch.device) -> Tensor:
        if not self.stratified:
            return context.rand((), f"{self.out}/time", device).double()
        offset = mix_seed(context.seed, self.out, "time") / 2**63
        return low_discrepancy(torch.tensor(context.positions), offset).to(device, non_blocking=True)


def check_unconditional(
    unconditional: Mapping[str, float] | None, conditions: Mapping[str, str], needed: bool
) -> dict[str, float]:
    """What stands for no condition, by argument.

    Raises:
        ConfigurationError: it is needed and not there, or names something that is no condition.
    """
    values = dict(unconditional or {})
    unknown = values.keys() - conditions.keys()
    if unknown:
        raise ConfigurationError(
            f"unconditional: {', '.join(sorted(unknown))} is no argument under 'conditions', "
            f"which has: {', '.join(conditions) or 'nothing'}"
        )
    if needed and not values:
        raise ConfigurationError(
            "dropping conditions, or guidance, needs 'unconditional: {argument: what stands for no condition}'"
        )
    return values


def without(conditions: Mapping[str, Any], unconditional: Mapping[str, float], dropped: Tensor) -> dict[str, Any]:
    """Conditions with those of some samples replaced by what stands for none.

    Args:
        conditions: by argument, (B, ...) each.
        unconditional: the numbers that stand for none, by argument; other arguments stay.
        dropped: (B,), true where they are replaced.
    """
    replaced = dict(conditions)
    for argument, number in unconditional.items():
        value: Tensor = replaced[argument]
        mask = dropped.reshape(-1, *(1,) * (value.dim() - 1))
        replaced[argument] = torch.where(mask, torch.full_like(value, number), value)
    return replaced
