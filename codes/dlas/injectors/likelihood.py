"""How likely a diffusion model finds its data."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from dlas.context import Context
from dlas.diffusion import NetworkDenoiser, create_process
from dlas.diffusion.likelihood import bits_per_dimension
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.respacing import Respaced, spaced_timesteps
from dlas.diffusion.training import Objective
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import NetworkName, ProcessOptions, StateIn, StateOut


@INJECTORS.register("bits_per_dimension")
class BitsPerDimensionInjector(Injector):
    """The variational bound of the data's likelihood, in bits per dimension; lower is better.

    It is for evaluation: `eval.values` makes it a figure. It calls the network once for every timestep. Noise depends on the
    seed of the run and the place of each sample in its set alone.

    Args:
        in_: pictures of 8 bits, (B, C, ...), in [-1, 1].
        out: the bound, (B,).
        generator: the network, called as network(x, times, **conditions).
        process: what times mean; one with timesteps, such as `{type: vp, schedule: cosine}`.
        prediction: what the network predicts; `previous_x` is the mean of the next lower timestep.
        variance: of the model's steps, which the bound depends on much; the second half of the network's
            channels tells the learned ones.
        timesteps: the bound of a part of the timesteps, which is less work and a looser bound: "250", "100,50,10" of three
            sections, "ddim50". All if not given.
        clip: clip the data that the network sees to [-1, 1].
        conditions: further arguments of the network: {argument: state key}.
        out_x0_error: key for the mean squared error of the data that are seen, over all timesteps, (B,).

    Raises:
        ConfigurationError: the process has no timesteps, or the options do not go together.

    Example:
        in: x0
        out: bits
        generator: generator
        process: {type: vp, schedule: cosine}
        timesteps: 100

    Source: Ho et al. 2020 (arXiv:2006.11239), equation 5; Nichol and Dhariwal 2021 (arXiv:2102.09672).
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        generator: NetworkName,
        process: ProcessOptions,
        prediction: Literal["eps", "x0", "v", "previous_x"] = "eps",
        variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "fixed_small",
        timesteps: str | int | None = None,
        clip: bool = True,
        conditions: dict[str, StateIn] | None = None,
        out_x0_error: StateOut | None = None,
    ) -> None:
        self.source = in_
        self.out = out
        self.network = generator
        self.process = create_process(process)
        if not isinstance(self.process, Timesteps):
            raise ConfigurationError(f"process {process}: has no timesteps, and the bound is a sum over them; take vp")
        if timesteps is not None:
            self.process = Respaced(self.process, spaced_timesteps(self.process.steps, str(timesteps)))
        self.objective = Objective(self.process, prediction, variance)
        self.clip = clip
        self.conditions = dict(conditions or {})
        self.out_x0_error = out_x0_error

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        x0: Tensor = state[self.source].float()
        denoiser = NetworkDenoiser(
            context.network(self.network),
            self.process,
            conditions={argument: state[key] for argument, key in self.conditions.items()},
            learned_variance=self.objective.learns_variance,
        )

        def step(x: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            output, values, _ = denoiser.predict(x, times)
            return self.objective.estimate(output, values, x, times, _clipped if self.clip else None)

        def noise(k: int) -> Tensor:
            return context.randn(x0.shape[1:], f"{self.out}/noise {k}", x0.device)

        bits = bits_per_dimension(self.objective.chain, step, x0, noise)
        entries = {self.out: bits.total}
        if self.out_x0_error is not None:
            entries[self.out_x0_error] = bits.x0_error.mean(1)
        return entries


def _clipped(x0: Tensor) -> Tensor:
    return x0.clamp(-1, 1)
