"""Training consistency models, from data alone or from a diffusion model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from dlas.context import Context, mix_seed
from dlas.diffusion import Level, NetworkDenoiser, create_process, to_x0
from dlas.diffusion.consistency import boundary_x0, check_path, discretisation, ladder, pseudo_huber, rung_shares
from dlas.diffusion.levels import over
from dlas.diffusion.tables import Table
from dlas.diffusion.times import low_discrepancy
from dlas.errors import ConfigurationError
from dlas.host import sent
from dlas.injectors.averages import averaged
from dlas.injectors.base import Injector, State
from dlas.injectors.conditions import read_conditions
from dlas.injectors.networks import evaluation_mode
from dlas.registry import INJECTORS
from dlas.types import NetworkName, NonNegativeFloat, PositiveFloat, PositiveInt, ProcessOptions, StateIn, StateOut


@INJECTORS.register("consistency")
class ConsistencyInjector(Injector):
    """The error of a consistency model: what it sees in a noisy sample and in one a little less noisy should be the same.

    Sample from it with `diffusion_sample`, `prediction: consistency` and `sampler: {type: consistency}`, in one step or a few.
    The less noisy sample is made with the true data (consistency training), or by a step of a diffusion model (distillation,
    with `teacher`).

    Args:
        in_: the data, (B, C, ...), of about unit size: images in [-1, 1].
        out: the loss of each sample, (B,); the loss `direct` makes it the step's.
        generator: the network, called as network(x, times, **conditions).
        process: what times mean; one of continuous times.
        teacher: a network that was trained by `diffusion` for the same process; it is not trained here.
        teacher_prediction: what it predicts.
        target: own: the network is compared with itself, without gradient; average: with the running average of its weights
            (`train.ema`).
        scales_start: intervals into which the path is cut at the start.
        scales_end: intervals in the end; 18 for distillation, as many at the start.
        scales_steps: iterations over which their number grows.
        growth: how it grows: doubled in equal stages, or as a square root.
        levels: which neighbouring levels are trained: log_normal: as a normal distribution of ln(sigma / alpha) has them;
            uniform: all alike.
        levels_mean: of that distribution.
        levels_std: its standard deviation.
        metric: pseudo_huber: less moved by outliers; l2: the mean squared error.
        huber_c: where pseudo_huber turns from a square to a distance; by default 0.00054 sqrt(numbers in a sample).
        weighting: interval: errors are divided by the distance of the two levels; uniform: they are not.
        sigma_min: sigma / alpha of the least noise.
        sigma_max: sigma / alpha of the most.
        rho: bends the path's levels; 7 puts most at little noise.
        conditions: further arguments of the network, and the teacher: {argument: state key}.
        out_x0: key for the data that the network sees in the noisier sample, without gradient.

    Raises:
        ConfigurationError: the process has timesteps, or a range is empty.

    Source: Song et al. 2023 (arXiv:2303.01469), algorithms 2 and 3; the defaults: Song and Dhariwal 2023 (arXiv:2310.14189).
    """

    averages = (("target", "average"),)

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        generator: NetworkName,
        process: ProcessOptions,
        scales_steps: PositiveInt,
        teacher: NetworkName | None = None,
        teacher_prediction: Literal["eps", "x0", "v", "velocity", "edm"] = "edm",
        target: Literal["own", "average"] = "own",
        scales_start: PositiveInt = 10,
        scales_end: PositiveInt = 1280,
        growth: Literal["doubling", "sqrt"] = "doubling",
        levels: Literal["log_normal", "uniform"] = "log_normal",
        levels_mean: float = -1.1,
        levels_std: PositiveFloat = 2.0,
        metric: Literal["pseudo_huber", "l2"] = "pseudo_huber",
        huber_c: NonNegativeFloat | None = None,
        weighting: Literal["interval", "uniform"] = "interval",
        sigma_min: PositiveFloat = 0.002,
        sigma_max: PositiveFloat = 80.0,
        rho: PositiveFloat = 7.0,
        conditions: dict[str, StateIn] | None = None,
        out_x0: StateOut | None = None,
    ) -> None:
        if scales_start > scales_end:
            raise ConfigurationError(f"consistency: scales_start {scales_start} is more than scales_end {scales_end}")
        if sigma_min >= sigma_max:
            raise ConfigurationError(f"consistency: sigma_min {sigma_min} must be less than sigma_max {sigma_max}")
        self.source, self.out, self.out_x0 = in_, out, out_x0
        self.network, self.teacher, self.teacher_prediction = generator, teacher, teacher_prediction
        self.process = create_process(process)
        check_path(self.process)
        self.averaged = target == "average"
        self.scales = (scales_steps, scales_start, scales_end, growth)
        self.log_normal = (levels_mean, levels_std) if levels == "log_normal" else None
        self.squared, self.huber_c = metric == "l2", huber_c
        self.by_interval = weighting == "interval"
        self.range = (sigma_min, sigma_max, rho)
        self.conditions = dict(conditions or {})
        self._tables: tuple[int, Table, Table | None] | None = None

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        x0: Tensor = state[self.source].float()
        conditions = read_conditions(self.conditions, state)
        lower, upper = self._rungs(context, x0.device)
        noise = context.randn(x0.shape[1:], f"{self.out}/noise", x0.device)
        x, level = self._noisy(x0, noise, upper)
        network = context.network(self.network)
        with _same_dropout(context, self.out):
            seen = self._see(network, x, upper, conditions)
        with torch.no_grad():
            if self.teacher is None:
                less, _ = self._noisy(x0, noise, lower)
            else:
                teacher = context.network(self.teacher)
                with evaluation_mode(teacher):
                    less = self._step_down(teacher, x / level.alpha, upper, lower, conditions)
            reference = averaged(context, self.network, "consistency") if self.averaged else network
            with _same_dropout(context, self.out):
                wanted = self._see(reference, less, lower, conditions)
        torch.clear_autocast_cache()  # older releases of torch reuse weights cast without gradients
        entries = {self.out: self._loss(seen - wanted, upper - lower)}
        if self.out_x0 is not None:
            entries[self.out_x0] = seen.detach()
        return entries

    def _rungs(self, context: Context, device: torch.device) -> tuple[Tensor, Tensor]:
        """Neighbouring values of sigma / alpha of each sample, the lower one first: (B,), float64."""
        total, first, last, growth = self.scales
        count = discretisation(context.step, total, first, last, growth)
        if self._tables is None or self._tables[0] != count:
            ratios = ladder(count, *self.range)
            shares = None if self.log_normal is None else Table(rung_shares(ratios, *self.log_normal))
            self._tables = count, Table(ratios), shares
        _, table, shares = self._tables
        offset = mix_seed(context.seed, self.out, "time") / 2**63
        uniform = sent(low_discrepancy(torch.tensor(context.positions), offset), device)
        if shares is None:
            rung = (uniform * (count - 1)).long()
        else:
            rung = torch.searchsorted(shares.on(device), uniform, right=True)
        rung = rung.clamp(max=count - 2)
        ratios = table.on(device)
        return ratios[rung], ratios[rung + 1]

    def _noisy(self, x0: Tensor, noise: Tensor, ratio: Tensor) -> tuple[Tensor, Level]:
        level = self.process.level(self.process.at_ratio(ratio)).like(x0)
        return level.alpha * x0 + level.sigma * noise, level

    def _see(self, network: Callable[..., Any], x: Tensor, ratio: Tensor, conditions: dict[str, Any]) -> Tensor:
        times = self.process.at_ratio(ratio)
        output, _, _ = NetworkDenoiser(network, self.process, conditions=conditions).predict(x, times)
        return boundary_x0(output, x, self.process.level(times).like(x), self.process.sigma_data, self.range[0])

    def _step_down(
        self, teacher: Callable[..., Any], scaled: Tensor, upper: Tensor, lower: Tensor, conditions: dict[str, Any]
    ) -> Tensor:
        """Heun's step of the teacher's probability flow, in x / alpha; gives samples at the lower level."""
        denoiser = NetworkDenoiser(teacher, self.process, conditions=conditions)

        def slope(scaled: Tensor, ratio: Tensor) -> Tensor:
            times = self.process.at_ratio(ratio)
            level = self.process.level(times).like(scaled)
            x = level.alpha * scaled
            output, _, _ = denoiser.predict(x, times)
            x0 = to_x0(self.teacher_prediction, output, x, level, self.process.sigma_data)
            return (scaled - x0) / level.ratio

        apart = over(lower - upper, scaled)
        first = slope(scaled, upper)
        second = slope(scaled + apart * first, lower)
        level = self.process.level(self.process.at_ratio(lower)).like(scaled)
        return level.alpha * (scaled + apart * (first + second) / 2)

    def _loss(self, difference: Tensor, interval: Tensor) -> Tensor:
        if self.squared:
            loss = difference.square().flatten(1).mean(1)
        else:
            c = 0.00054 * math.sqrt(difference[0].numel()) if self.huber_c is None else self.huber_c
            loss = pseudo_huber(difference, c)
        return loss / interval.to(loss) if self.by_interval else loss


@contextmanager
def _same_dropout(context: Context, stream: str) -> Iterator[None]:
    """Layers draw the same random numbers within, each time in a micro-batch; those outside go on as they would have."""
    with torch.random.fork_rng():
        torch.manual_seed(mix_seed(context.seed, context.step, context.positions[0], stream))
        yield
