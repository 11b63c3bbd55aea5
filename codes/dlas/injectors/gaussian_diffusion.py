"""DL-Art-School's diffusion injectors by their names and options, made of what `diffusion` and `diffusion_sample` are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dlas.config.schema import BetaScheduleConfig, DiffusionArgsConfig
from dlas.context import Context, mix_seed
from dlas.diffusion import NetworkDenoiser, create_process
from dlas.diffusion.causal import causal_timesteps
from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.guidance import Autoguidance, Guidance
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.respacing import Respaced, spaced_timesteps
from dlas.diffusion.samplers import create_sampler
from dlas.diffusion.sampling import START, sample
from dlas.diffusion.times import Observations, create_times
from dlas.diffusion.training import Objective
from dlas.errors import ConfigurationError
from dlas.injectors.averages import averaged
from dlas.injectors.base import Injector, State
from dlas.injectors.conditions import read_conditions
from dlas.injectors.diffusion import Lesson
from dlas.injectors.diffusion_sample import data_of, name_samples, sampling, transform_of
from dlas.registry import INJECTORS
from dlas.types import (
    BetaScheduleOptions,
    DiffusionArgsOptions,
    NetworkName,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StateIn,
    StateOut,
)

_PREDICTIONS: dict[str, Literal["eps", "x0", "previous_x"]] = {"epsilon": "eps", "start_x": "x0", "previous_x": "previous_x"}


@INJECTORS.register("gaussian_diffusion")
class GaussianDiffusionInjector(Injector):
    """The loss of a denoising network, with DL-Art-School's options; new files are better written with `diffusion`.

    The log has the mean error of the noisiest quarter of timesteps and of the quarter below (`upper_quantile_mse_loss`,
    `mid_upper_quantile_mse_loss`). Otherwise than there, pictures are trained as guided-diffusion trains them, fixed variances
    too; timesteps of a batch are spread evenly; and losses are weighted for timesteps that are drawn by their losses.

    Args:
        in_: the data, (B, C, ...), in [-1, 1].
        out: the squared error of each sample, (B,); with a `loss_type` of kl the bound.
        generator: the network, called as network(x, timesteps, **model_input_keys).
        beta_schedule: `schedule_name` (linear or cosine) and `num_diffusion_timesteps`.
        diffusion_args: `model_mean_type` (epsilon, previous_x, start_x), `model_var_type` (learned, fixed_small, fixed_large,
            learned_range), `loss_type` (mse, rescaled_mse, kl, rescaled_kl), `rescale_timesteps`; what it says of
            conditioning-free guidance is for sampling.
        sampler_type: how timesteps are drawn: uniform, or more often where losses are large.
        model_input_keys: further arguments of the network: {argument: state key or number}.
        extra_model_output_keys: keys for what the network gives beside its prediction.
        out_key_vb_loss: key for the bound of each sample that trains the variance, (B,); needs a learned one.
        out_key_x_start: key for the data that the network sees, without gradient.
        deterministic_timesteps_every: in iterations that are a multiple of this, timesteps are drawn evenly whatever
            `sampler_type` says, so that losses compare; 0 is never.
        causal_mode: timesteps that grow along the last dimension of (B, C, L): the network is given (B, L).
        causal_slope_range: least and largest growth from a place to the next, drawn for each batch; whole numbers.
        preprocess_fn: method of the network that makes the data of the data, called with data, timesteps and the process.
        channel_restriction_low: first of the channels whose errors count; with channel_restriction_high.
        channel_restriction_high: the channel behind the last one.

    Raises:
        ConfigurationError: options that do not go together; the message tells which.

    Example:
        generator: generator
        in: hq
        beta_schedule: {schedule_name: linear, num_diffusion_timesteps: 1000}
        diffusion_args: {model_mean_type: epsilon, model_var_type: learned_range, loss_type: mse}
        model_input_keys: {low_res: lq}
        out: loss
        out_key_vb_loss: vb_loss
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        generator: NetworkName,
        beta_schedule: BetaScheduleOptions,
        diffusion_args: DiffusionArgsOptions,
        sampler_type: Literal["uniform", "loss-second-moment"] = "uniform",
        model_input_keys: dict[str, StateIn | float] | None = None,
        extra_model_output_keys: list[StateOut] | None = None,
        out_key_vb_loss: StateOut | None = None,
        out_key_x_start: StateOut | None = None,
        deterministic_timesteps_every: NonNegativeInt = 0,
        causal_mode: bool = False,
        causal_slope_range: list[NonNegativeInt] | None = None,
        preprocess_fn: str | None = None,
        channel_restriction_low: NonNegativeInt | None = None,
        channel_restriction_high: PositiveInt | None = None,
    ) -> None:
        settings = DiffusionArgsConfig(**diffusion_args)
        process = create_vp(beta_schedule, settings)
        objective = Objective(
            process,
            _PREDICTIONS[settings.model_mean_type],
            settings.model_var_type,
            settings.loss_type,
        )
        if out_key_vb_loss is not None and not objective.learns_variance:
            raise ConfigurationError(
                "gaussian_diffusion: out_key_vb_loss needs diffusion_args.model_var_type learned or learned_range: a fixed "
                "variance has no bound to be trained by"
            )
        self.lesson = Lesson(objective, Observations(create_times({"type": sampler_type})), out)
        self.source, self.out, self.network = in_, out, generator
        self.conditions = dict(model_input_keys or {})
        self.extra, self.out_bound, self.out_x0 = extra_model_output_keys or [], out_key_vb_loss, out_key_x_start
        self.even_every = deterministic_timesteps_every
        self.slopes = check_slopes(causal_slope_range or [1, 8]) if causal_mode else None
        self.preprocess = preprocess_fn
        self.channels = check_channels(channel_restriction_low, channel_restriction_high)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        x0: Tensor = state[self.source].float()
        network = context.network(self.network)
        even = self.even_every > 0 and context.step % self.even_every == 0
        drawn = self.lesson.draw(context, x0.device, even)
        if self.preprocess is not None:
            own = network.module if isinstance(network, DistributedDataParallel) else network
            x0 = getattr(own, self.preprocess)(x0, drawn.times, self.lesson.objective.process)
        places = None if self.slopes is None and self.channels is None else partial(self._places, x0=x0, context=context)
        conditions = read_conditions(self.conditions, state)
        answer = self.lesson.ask(network, x0, conditions, drawn, context, places, observe=not even)
        self.lesson.log_quantiles(context, answer, "")
        terms = answer.terms
        separate = terms.bound is not None and self.lesson.objective.loss in ("mse", "rescaled_mse")
        entries = {self.out: answer.weighted(terms.error if separate else terms.loss)}
        if self.out_bound is not None and terms.bound is not None:
            entries[self.out_bound] = answer.weighted(terms.bound.flatten(1).mean(1))
        if self.out_x0 is not None:
            entries[self.out_x0] = terms.x0.detach()
        if len(answer.others) < len(self.extra):
            raise ValueError(
                f"gaussian_diffusion: extra_model_output_keys names {len(self.extra)} results beside the prediction, but the "
                f"network gave {len(answer.others)}"
            )
        return entries | dict(zip(self.extra, answer.others, strict=False))

    def _places(self, times: Tensor, x0: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Times of each place, and what counts: places inside the chain, channels between the limits."""
        keep = torch.ones(1, 1, *(1,) * (x0.dim() - 2), device=x0.device)
        if self.channels is not None:
            low, high = self.channels
            if high > x0.shape[1]:
                raise ValueError(
                    f"gaussian_diffusion: channel_restriction_high is {high}, the data have {x0.shape[1]} channels"
                )
            number = torch.arange(x0.shape[1], device=x0.device).reshape(1, -1, *(1,) * (x0.dim() - 2))
            keep = keep * ((number >= low) & (number < high)) * (x0.shape[1] / (high - low))  # so means are over these alone
        if self.slopes is None:
            return times, keep
        if x0.dim() != 3:
            raise ValueError(f"gaussian_diffusion: causal_mode is for data (B, C, L), got {tuple(x0.shape)}")
        low, high = self.slopes
        slope = low + mix_seed(context.seed, context.step, self.out, "slope") % (high - low + 1)
        jitter = 2 * context.rand((), f"{self.out}/jitter", x0.device) - 1
        times, inside = causal_timesteps(times, x0.shape[-1], self.lesson.objective.process.steps, slope, jitter)
        return times, keep * inside.unsqueeze(1)

    def state_dict(self) -> dict[str, Tensor]:
        """What the timesteps remember of losses."""
        return self.lesson.observations.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave."""
        self.lesson.observations.load_state_dict(state)


@INJECTORS.register("gaussian_diffusion_inference")
class GaussianDiffusionInferenceInjector(Injector):
    """Draws samples, with DL-Art-School's options; new files are better written with `diffusion_sample`.

    The samples' shape follows from an argument of the network: `low_res` (B, C, h, w), `spectrogram` (B, C, l) or
    `discrete_spectrogram` (B, l).

    Args:
        generator: the network, called as network(x, timesteps, **model_input_keys).
        out: the samples: (B, 3, scale * h, scale * w), or (B, 1, scale * l).
        beta_schedule: as of `gaussian_diffusion`.
        diffusion_args: as of `gaussian_diffusion`; with `conditioning_free` the network is also called with
            `conditioning_free=True`, and predictions are (1 + k) with - k without, k being `conditioning_free_k`, which grows
            from 0 at the noisiest timestep unless `ramp_conditioning_free` is false.
        model_input_keys: further arguments of the network: {argument: state key or number}.
        output_batch_size: samples of a batch in training, from its first on; in evaluation there is one for each.
        output_scale_factor: how much larger samples are than the argument that tells their shape; a code of
            `discrete_spectrogram` is always 1024 numbers.
        respaced_timestep_spacing: how many timesteps to take ("100,50": of as many sections; "ddim50": with a whole stride);
            all of them by default.
        use_ddim: DDIM without noise in place of the ancestral sampler.
        undo_n1_to_1: samples are brought from [-1, 1] to [0, 1].
        use_ema: in training run the running average of the network's weights; in evaluation `eval.weights` decides.
        noise_type: what chains start from: noise of each sample; zeros; or the same noise in every batch.
        multiple_requirement: lengths of sound are rounded up to a multiple of this.

    Raises:
        ConfigurationError: no argument tells the shape, or options do not go together.

    Example:
        generator: generator
        beta_schedule: {schedule_name: linear, num_diffusion_timesteps: 1000}
        diffusion_args: {model_mean_type: epsilon, model_var_type: learned_range, loss_type: mse}
        model_input_keys: {low_res: lq}
        output_scale_factor: 2
        respaced_timestep_spacing: 50
        undo_n1_to_1: true
        out: sample
    """

    detaches = True
    averages = (("use_ema", True),)

    def __init__(
        self,
        *,
        generator: NetworkName,
        out: StateOut,
        beta_schedule: BetaScheduleOptions,
        diffusion_args: DiffusionArgsOptions,
        model_input_keys: dict[str, StateIn | float],
        output_batch_size: PositiveInt | None = None,
        output_scale_factor: PositiveFloat = 1.0,
        respaced_timestep_spacing: str | int | list[int] | None = None,
        use_ddim: bool = False,
        undo_n1_to_1: bool = False,
        use_ema: bool = False,
        noise_type: Literal["random", "zero", "fixed"] = "random",
        multiple_requirement: PositiveInt = 4096,
    ) -> None:
        settings = DiffusionArgsConfig(**diffusion_args)
        whole = create_vp(beta_schedule, settings)
        sections = whole.steps if respaced_timestep_spacing is None else respaced_timestep_spacing
        kept = spaced_timesteps(whole.steps, [sections] if isinstance(sections, int) else sections)
        self.process = Respaced(whole, kept)
        self.shape_key = next((key for key in _SHAPES if key in model_input_keys), None)
        if self.shape_key is None:
            raise ConfigurationError(
                f"gaussian_diffusion_inference: model_input_keys must have one of {', '.join(_SHAPES)}, which tells the "
                "samples' shape; 'diffusion_sample' takes a shape"
            )
        self.network, self.out, self.conditions = generator, out, dict(model_input_keys)
        self.count, self.scale, self.multiple = output_batch_size, output_scale_factor, multiple_requirement
        self.sampler = create_sampler(
            {"type": "ddim"} if use_ddim else {"type": "ancestral", "variance": settings.model_var_type}
        )
        prediction = _PREDICTIONS[settings.model_mean_type]
        self.denoiser = partial(
            NetworkDenoiser,
            process=self.process,
            prediction="eps" if prediction == "previous_x" else prediction,
            learned_variance=settings.model_var_type.startswith("learned"),
            x0_of=data_of(self.process, prediction),
        )
        # A mean that the network predicts itself is taken as it is.
        self.transform = transform_of("none" if prediction == "previous_x" and not use_ddim else "static")
        self.guidance = (
            Guidance(1 + settings.conditioning_free_k, ramp=settings.ramp_conditioning_free)
            if settings.conditioning_free
            else None
        )
        self.unit_range, self.average, self.start = undo_n1_to_1, use_ema, noise_type

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        conditions = read_conditions(self.conditions, state)
        count = len(context.positions)
        if self.count is not None and context.training and self.count < count:
            conditions = {
                argument: value[: self.count] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
                for argument, value in conditions.items()
            }
            context = dataclasses.replace(context, positions=context.positions[: self.count])
        assert self.shape_key is not None
        source: Tensor = conditions[self.shape_key]
        shape = _SHAPES[self.shape_key](source, self.scale, self.multiple)
        with sampling(context, [self.network]):
            drawn = sample(
                self._denoiser(conditions, context),
                self.process,
                self.sampler,
                partial(self._noise, context, shape, source.device),
                steps=self.process.steps,
            )
        return name_samples(drawn, self.out, None, self.unit_range)

    def _denoiser(self, conditions: dict[str, Any], context: Context) -> Denoiser:
        network: Callable[..., Any] = context.network(self.network)
        if self.average:
            network = averaged(context, self.network, "gaussian_diffusion_inference")
        good = self.denoiser(network, conditions=conditions, transform=self.transform)
        if self.guidance is None:
            return good
        free = self.denoiser(partial(network, conditioning_free=True), conditions=conditions)
        return Autoguidance(good, free, self.guidance)

    def _noise(self, context: Context, shape: tuple[int, ...], device: torch.device, k: int) -> Tensor:
        if k == START and self.start == "zero":
            return torch.zeros((len(context.positions), *shape), device=device)
        if k == START and self.start == "fixed":
            context = dataclasses.replace(context, positions=range(len(context.positions)))
        return context.randn(shape, f"{self.out}/{k}", device)


def _of_picture(low: Tensor, scale: float, multiple: int) -> tuple[int, ...]:
    return (3, *(round(size * scale) for size in low.shape[-2:]))


def _of_sound(spectrogram: Tensor, scale: float, multiple: int) -> tuple[int, ...]:
    return 1, -int(-(spectrogram.shape[-1] * scale) // multiple) * multiple


def _of_codes(codes: Tensor, scale: float, multiple: int) -> tuple[int, ...]:
    return _of_sound(codes, 1024, multiple)


_SHAPES: dict[str, Callable[[Tensor, float, int], tuple[int, ...]]] = {
    "low_res": _of_picture,
    "spectrogram": _of_sound,
    "discrete_spectrogram": _of_codes,
}


def create_vp(schedule: Mapping[str, Any], settings: DiffusionArgsConfig) -> Timesteps:
    """The process that `beta_schedule` and `diffusion_args` describe."""
    told = BetaScheduleConfig(**schedule)
    options = {"schedule": told.schedule_name, "steps": told.num_diffusion_timesteps}
    process = create_process({"type": "vp", **options, "rescale_timesteps": settings.rescale_timesteps})
    assert isinstance(process, Timesteps)
    return process


def check_slopes(given: list[int]) -> tuple[int, int]:
    """Least and largest slope.

    Raises:
        ConfigurationError: they are not two numbers in order.
    """
    if len(given) != 2 or given[0] > given[1]:
        raise ConfigurationError(f"gaussian_diffusion: causal_slope_range is the least and the largest slope; given: {given}")
    return given[0], given[1]


def check_channels(low: int | None, high: int | None) -> tuple[int, int] | None:
    """The channels whose errors count, if not all.

    Raises:
        ConfigurationError: one limit is missing, or there is no channel between them.
    """
    if low is None and high is None:
        return None
    if low is None or high is None or low >= high:
        raise ConfigurationError(
            "gaussian_diffusion: channel_restriction_low and channel_restriction_high go together, low < high; given: "
            f"{low}, {high}"
        )
    return low, high
