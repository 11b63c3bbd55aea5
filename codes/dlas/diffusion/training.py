"""What a network is asked, and how far its answer is from the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from dlas.diffusion.levels import Level, Prediction, diffuse, over, target, to_x0
from dlas.diffusion.likelihood import bound_terms
from dlas.diffusion.processes import Process, Timesteps
from dlas.diffusion.tables import on_host
from dlas.diffusion.variance import Chain, Link, Variance
from dlas.diffusion.weightings import Uniform, Weighting
from dlas.errors import ConfigurationError

Loss: TypeAlias = Literal["mse", "rescaled_mse", "kl", "rescaled_kl"]
"""What is minimised.

============  =====================================================================================
name          loss
============  =====================================================================================
mse           squared error of the prediction; with a learned variance, and the bound for it
rescaled_mse  the same with the bound times T / 1000
kl            the variational bound of the timestep, in bits per dimension
rescaled_kl   the same times T: an estimate of the whole bound
============  =====================================================================================

Source: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 16 (the hybrid loss).
"""


class Question(NamedTuple):
    """Noisy samples and what the network should say of them, made of the same noise.

    Attributes:
        x0: data (B, C, ...), float32.
        x: noisy samples.
        target: of the prediction.
        times: (B,), or one for each place, (B, ...).
    """

    x0: Tensor
    x: Tensor
    target: Tensor
    times: Tensor


class Estimate(NamedTuple):
    """The model's step to the next lower timestep.

    Attributes:
        mean: (B, C, ...), float32.
        log_variance: logarithm of its variance; broadcasts over the samples.
        x0: the data that the network sees.
    """

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class Terms(NamedTuple):
    """Losses of samples.

    Attributes:
        loss: (B,), what is to be minimised.
        error: (B,), mean squared error of the prediction, not weighted.
        bound: (B, C, ...), the part of the variational bound, in bits, as it enters the loss; None where it does not.
        x0: the data that the network sees, (B, C, ...).
    """

    loss: Tensor
    error: Tensor
    bound: Tensor | None
    x0: Tensor


@dataclass
class Objective:
    """What a diffusion model is trained for.

    Args:
        process: what times mean.
        prediction: what the network predicts; `previous_x` is the mean of the next lower timestep.
        variance: of the model's steps; concerns losses only where it is learned or the loss is the bound.
        loss: what is minimised.
        weighting: of the squared error, by noise level.

    Raises:
        ConfigurationError: options that do not go together.
    """

    process: Process
    prediction: Prediction | Literal["previous_x"] = "eps"
    variance: Variance = "fixed_small"
    loss: Loss = "mse"
    weighting: Weighting = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        with on_host():
            self._chain = Chain(self.process) if isinstance(self.process, Timesteps) else None
        if self._chain is None:
            if self.prediction == "previous_x" or self.learns_variance or self.loss != "mse":
                raise ConfigurationError(
                    f"prediction {self.prediction}, variance {self.variance}, loss {self.loss}: {self._name} has no timesteps; "
                    "previous_x, learned variances and other losses than mse need a process with timesteps, such as vp"
                )
        elif self.prediction == "eps" and math.isinf(self.process.first_ratio):
            raise ConfigurationError(
                "prediction eps: the last timestep is pure noise (zero_terminal_snr), in which noise says nothing of the data; "
                "predict v or x0"
            )
        if self.prediction == "previous_x" and not isinstance(self.weighting, Uniform):
            raise ConfigurationError("prediction previous_x: errors of it are not weighted; leave the weighting out")

    @property
    def learns_variance(self) -> bool:
        """Whether the network has channels for the variance."""
        return self.variance in ("learned", "learned_range")

    @property
    def _bound_alone(self) -> bool:
        return self.loss in ("kl", "rescaled_kl")

    @property
    def chain(self) -> Chain:
        """The steps back.

        Raises:
            ConfigurationError: the process has no timesteps.
        """
        if self._chain is None:
            raise ConfigurationError(f"{self._name} has no timesteps, so there are no single steps back, and no bound of them")
        return self._chain

    @property
    def _name(self) -> str:
        return type(self.process).__name__

    def ask(self, x0: Tensor, noise: Tensor, times: Tensor) -> Question:
        """Noisy samples and the target.

        Args:
            x0: data (B, C, ...).
            noise: of each sample, final: assigned, with its offset (see `dlas.diffusion.noise`).
            times: (B,), or (B, ...) with one for each place of `x0`.
        """
        x0, noise = x0.float(), noise.float()
        level = self.process.level(times).like(x0)
        x = diffuse(x0, noise, level)
        if self.prediction == "previous_x":
            return Question(x0, x, self.chain.at(times, x).posterior.mean(x0, x), times)
        return Question(x0, x, target(self.prediction, x0, noise, level, self.process.sigma_data), times)

    def x0_of(self, output: Tensor, x: Tensor, times: Tensor) -> Tensor:
        """The data that a network's prediction means."""
        if self.prediction == "previous_x":
            return self.chain.at(times, x).posterior.x0_of(output, x)
        return to_x0(self.prediction, output, x, self.process.level(times).like(x), self.process.sigma_data)

    def estimate(
        self,
        output: Tensor,
        values: Tensor | None,
        x: Tensor,
        times: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> Estimate:
        """The model's step down from timesteps of a discrete process.

        Args:
            output: the network's prediction (B, C, ...).
            values: what it says of the variance, if that is learned.
            x: noisy samples.
            times: timesteps.
            transform: done to the data that are seen, such as clipping.
        """
        return self._estimate(self.chain.at(times, x), output.float(), values, x, times, transform)

    def _estimate(
        self,
        link: Link,
        output: Tensor,
        values: Tensor | None,
        x: Tensor,
        times: Tensor,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> Estimate:
        x0 = self.x0_of(output, x, times)
        x0 = x0 if transform is None else transform(x0)
        mean = output if self.prediction == "previous_x" else link.posterior.mean(x0, x)
        return Estimate(mean, link.log_variance(self.variance, values), x0)

    def terms(self, question: Question, output: Tensor, values: Tensor | None = None, keep: Tensor | None = None) -> Terms:
        """Losses of the network's answer.

        Args:
            question: what it was asked.
            output: its prediction (B, C, ...).
            values: what it says of the variance, if that is learned.
            keep: False at places, (B, 1, ...), that do not count; means are over all places still.
        """
        output = output.float()
        kept = 1.0 if keep is None else keep
        squares = (output - question.target).square() * kept
        error = _mean(squares)
        bound, x0 = self._bound(question, output, values)
        if bound is None:
            return Terms(_mean(squares * self._factors(question)), error, None, x0)
        bound = bound * kept
        if self._bound_alone:
            return Terms(_mean(bound), error, bound, x0)
        return Terms(_mean(squares * self._factors(question)) + _mean(bound), error, bound, x0)

    def _factors(self, question: Question) -> Tensor | float:
        if self.prediction == "previous_x":
            return 1.0
        level: Level = self.process.level(question.times)
        return over(self.weighting(level, self.prediction, self.process.sigma_data), question.x)

    def _bound(self, question: Question, output: Tensor, values: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The bound's part in the loss, if it has one, and the data that are seen."""
        x0, x, _, times = question
        if not (self._bound_alone or self.learns_variance):
            return None, self.x0_of(output, x, times)
        # With the squared error, the bound is for the variance alone: it does not reach the prediction.
        link = self.chain.at(times, x)
        mean, log_variance, _ = self._estimate(link, output if self._bound_alone else output.detach(), values, x, times)
        scale = {"mse": 1.0, "rescaled_mse": self.chain.steps / 1000, "kl": 1.0, "rescaled_kl": float(self.chain.steps)}
        return bound_terms(link, x0, x, mean, log_variance) * scale[self.loss], self.x0_of(output, x, times)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)
