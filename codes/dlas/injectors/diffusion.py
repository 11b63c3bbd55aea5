"""Training diffusion and flow models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dlas.context import Context, mix_seed
from dlas.diffusion import NetworkDenoiser, create_process
from dlas.diffusion.noise import Assignment, draw_noise, dropped
from dlas.diffusion.processes import Process
from dlas.diffusion.tables import on_host
from dlas.diffusion.times import Drawn, Observations, Uniform, create_times, low_discrepancy
from dlas.diffusion.training import Objective, Terms
from dlas.diffusion.weightings import create_weighting, noise_coordinate, with_log_variance
from dlas.errors import ConfigurationError
from dlas.host import sent
from dlas.injectors.base import Injector, State
from dlas.injectors.conditions import check_unconditional, read_conditions, without
from dlas.registry import INJECTORS
from dlas.types import (
    Fraction,
    NetworkName,
    NonNegativeFloat,
    PositiveInt,
    ProcessOptions,
    StateIn,
    StateOut,
    TimesOptions,
    WeightingOptions,
)


class Answer(NamedTuple):
    """What a network gave for samples at drawn times.

    Attributes:
        terms: losses, as the objective has them.
        drawn: the times, and what losses are multiplied by for them.
        others: what the network gave beside its prediction.
    """

    terms: Terms
    drawn: Drawn
    others: tuple[Any, ...]

    def weighted(self, loss: Tensor) -> Tensor:
        """Losses (B,), multiplied so that their expectation is that of evenly drawn times."""
        return loss if self.drawn.weights is None else loss * self.drawn.weights.to(loss)


@dataclass
class Lesson:
    """How a diffusion is trained; what its two injectors share.

    Args:
        objective: what the network is asked.
        observations: of the times that are drawn; remembers losses for those that follow them.
        stream: name of the random numbers: the injector's `out`.
        stratified: times of a batch are spread evenly.
        noise: which noise goes to which sample.
        candidates: of each sample, for noise `nearest`.
        offset_noise: standard deviation of further noise, one number a channel.
    """

    objective: Objective
    observations: Observations
    stream: str
    stratified: bool = True
    noise: Assignment = "independent"
    candidates: int = 4
    offset_noise: float = 0.0

    def draw(self, context: Context, device: torch.device, even: bool = False) -> Drawn:
        """Times of the samples: from the distribution, or as the process has them; the latter in evaluation, too."""
        self.observations.settle(context.step)
        times = Uniform() if even or not context.training else self.observations.times
        return times.draw(self.objective.process, self._uniform(context, device), context.step)

    def ask(
        self,
        network: Callable[..., Any],
        x0: Tensor,
        conditions: Mapping[str, Any],
        drawn: Drawn,
        context: Context,
        places: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        observe: bool = True,
    ) -> Answer:
        """Shows a network noisy samples, and takes its losses.

        Args:
            network: called as network(x, times, **conditions).
            x0: data (B, C, ...), float32.
            conditions: further arguments.
            drawn: times.
            context: of the step.
            places: makes times (B, ...), one for each place, of the samples' times (B,), and factors (B, C or 1, ...) by which
                places count.
            observe: whether the distribution of times is told of the losses; in evaluation it never is.
        """
        times, keep = (drawn.times, None) if places is None else places(drawn.times)
        noise = draw_noise(
            x0,
            lambda shape, name: context.randn(shape, f"{self.stream}/{name}", x0.device),
            self.noise,
            self.candidates,
            self.offset_noise,
        )
        question = self.objective.ask(x0, noise, times)
        denoiser = NetworkDenoiser(
            network, self.objective.process, conditions=conditions, learned_variance=self.objective.learns_variance
        )
        output, values, others = denoiser.predict(question.x, times)
        terms = self.objective.terms(question, output, values, keep)
        if context.training and observe:
            self.observations.add(context.step, context.positions, drawn.times, terms.loss)
        return Answer(terms, drawn, others)

    def log_quantiles(self, context: Context, answer: Answer, prefix: str) -> None:
        """Logs the mean error at the noisiest quarter of times, and at the quarter below."""
        half, most = self._quantiles
        times, error = answer.drawn.times, answer.terms.error.detach()
        for name, chosen in (("upper", times > most), ("mid_upper", (times > half) & (times <= most))):
            count = chosen.sum()
            context.log(f"{prefix}{name}_quantile_mse_loss", (error * chosen).sum() / count.clamp(min=1), count)

    @cached_property
    def _quantiles(self) -> list[float]:
        return quantiles(self.objective.process, (0.5, 0.75))

    def _uniform(self, context: Context, device: torch.device) -> Tensor:
        if not self.stratified:
            return context.rand((), f"{self.stream}/time", device).double()
        offset = mix_seed(context.seed, self.stream, "time") / 2**63
        return sent(low_discrepancy(torch.tensor(context.positions), offset), device)


def quantiles(process: Process, places: tuple[float, ...]) -> list[float]:
    """Times at places of the process's own spread of noise levels, from 0, the least noise, to 1."""
    with on_host():
        found: list[float] = process.time_of(torch.tensor(places, dtype=torch.float64)).tolist()
    return found


@INJECTORS.register("diffusion")
class DiffusionInjector(Injector):
    """The error of a denoising network: draws a time and noise for each sample, and compares its prediction with the truth.

    Times and noise depend on the seed of the run and the place of each sample in its order alone. The log has the mean error of
    the noisiest quarter of times (`<out>_upper_quantile_mse_loss`) and of the quarter below (`<out>_mid_upper_...`).

    Args:
        in_: the data, (B, C, ...), of about unit size: images in [-1, 1].
        out: the loss of each sample, (B,); the loss `direct` makes it the step's.
        generator: the network, called as network(x, times, **conditions).
        process: what times mean: `{type: vp, schedule: cosine}`, `{type: edm}`, `{type: flow}`.
        prediction: what the network predicts; `edm` suits `process: {type: edm}`, `velocity` suits flow. previous_x: the mean
            of the next lower timestep.
        variance: of the model's steps; with `learned_range` or `learned` the network has twice the channels, and the bound of
            the likelihood trains the second half of them (Nichol and Dhariwal 2021).
        loss: mse: the squared error of the prediction, plus that bound where the variance is learned (rescaled_mse: times
            T / 1000); kl: the bound alone (rescaled_kl: times T).
        weighting: how much the squared error counts at which noise level.
        log_variance: a network `noise_level_variance` that this step trains, too: it learns how large losses are at each noise
            level, and they are divided by that (Karras et al. 2024).
        times: at which times it is trained.
        stratified: spread the times of a batch evenly, whatever its micro-batches and ranks: less noise in the gradient.
        noise: independent; assignment: those of a micro-batch are given to its samples so that they are near in total, which
            waits for the device; nearest: of some candidates for each sample, the nearest one (immiscible diffusion).
        candidates: how many, for `noise: nearest`.
        offset_noise: standard deviation of further noise that is one number a channel; 0 is none.
        conditions: further arguments of the network: {argument: state key}.
        drop_rate: share of the samples whose conditions are replaced by `unconditional`, which trains classifier-free guidance.
        unconditional: {argument: number}: what stands for no condition: a class label kept for this, 0 for vectors.
        out_x0: key for the data that the network sees, without gradient.
        out_bound: key for the bound's part of the loss, (B,), without gradient.

    Raises:
        ConfigurationError: options that do not go together; the message tells which.

    Source: Ho et al. 2020 (arXiv:2006.11239), algorithm 1; what the options are from is told with them.
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        generator: NetworkName,
        process: ProcessOptions,
        prediction: Literal["eps", "x0", "v", "velocity", "edm", "previous_x"] = "eps",
        variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "fixed_small",
        loss: Literal["mse", "rescaled_mse", "kl", "rescaled_kl"] = "mse",
        weighting: WeightingOptions | None = None,
        log_variance: NetworkName | None = None,
        times: TimesOptions | None = None,
        stratified: bool = True,
        noise: Literal["independent", "assignment", "nearest"] = "independent",
        candidates: PositiveInt = 4,
        offset_noise: NonNegativeFloat = 0.0,
        conditions: dict[str, StateIn] | None = None,
        drop_rate: Fraction = 0.0,
        unconditional: dict[str, float] | None = None,
        out_x0: StateOut | None = None,
        out_bound: StateOut | None = None,
    ) -> None:
        objective = Objective(
            create_process(process), prediction, variance, loss, create_weighting(weighting or {"type": "uniform"})
        )
        observations = Observations(create_times(times or {"type": "uniform"}))
        self.lesson = Lesson(objective, observations, out, stratified, noise, candidates, offset_noise)
        if out_bound is not None and not (objective.learns_variance or loss in ("kl", "rescaled_kl")):
            raise ConfigurationError(
                "diffusion: out_bound: the loss has no part of the bound; set variance: learned_range or loss: kl"
            )
        self.source = in_
        self.out = out
        self.network = generator
        self.log_variance = log_variance
        self.conditions = dict(conditions or {})
        self.drop_rate = drop_rate
        self.unconditional = check_unconditional(unconditional, self.conditions, needed=drop_rate > 0)
        self.out_x0 = out_x0
        self.out_bound = out_bound

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        x0: Tensor = state[self.source].float()
        conditions = read_conditions(self.conditions, state)
        if self.drop_rate and context.training:
            drop = dropped(context.rand((), f"{self.out}/drop", x0.device), self.drop_rate)
            conditions = without(conditions, self.unconditional, drop)
        drawn = self.lesson.draw(context, x0.device)
        answer = self.lesson.ask(context.network(self.network), x0, conditions, drawn, context)
        self.lesson.log_quantiles(context, answer, f"{self.out}_")
        entries = {self.out: answer.weighted(self._loss(answer, context))}
        if self.out_x0 is not None:
            entries[self.out_x0] = answer.terms.x0.detach()
        if self.out_bound is not None and answer.terms.bound is not None:
            entries[self.out_bound] = answer.terms.bound.detach().flatten(1).mean(dim=1)
        return entries

    def _loss(self, answer: Answer, context: Context) -> Tensor:
        if self.log_variance is None:
            return answer.terms.loss
        coordinate = noise_coordinate(self.lesson.objective.process.level(answer.drawn.times))
        return with_log_variance(answer.terms.loss, context.network(self.log_variance)(coordinate))

    def state_dict(self) -> dict[str, Tensor]:
        """What the times remember of losses."""
        return self.lesson.observations.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave."""
        self.lesson.observations.load_state_dict(state)
