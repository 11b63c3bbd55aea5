"""Drawing samples from diffusion, flow and consistency models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dlas.context import Context
from dlas.diffusion import NetworkDenoiser, Prediction, Process, create_process
from dlas.diffusion.consistency import boundary_x0
from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Guidance,
    class_gradient,
    clip,
    dynamic_threshold,
)
from dlas.diffusion.samplers import create_sampler
from dlas.diffusion.sampling import Sampled, sample
from dlas.diffusion.training import Objective
from dlas.diffusion.variance import Variance
from dlas.errors import ConfigurationError
from dlas.injectors.averages import averaged
from dlas.injectors.base import Injector, State
from dlas.injectors.conditions import check_unconditional, none_of, read_conditions
from dlas.injectors.networks import evaluation_mode
from dlas.registry import INJECTORS
from dlas.types import (
    Fraction,
    NetworkName,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ProcessOptions,
    SamplerOptions,
    StateIn,
    StateOut,
)


@INJECTORS.register("diffusion_sample")
class DiffusionSampleInjector(Injector):
    """Draws samples with a network that was trained by `diffusion` or `consistency`.

    Runs networks in evaluation mode, without gradients. A sample's noise depends on the seed of the run and the place of the
    sample in its order alone: validation, which counts from the first picture of the set, draws the same picture each time,
    however the set is cut into batches.

    Args:
        out: the samples, (B, C, ...), float32.
        generator: the network, called as network(x, times, **conditions).
        process: what times mean, as it was trained.
        prediction: what the network predicts, as it was trained; consistency: data at once (injector `consistency`).
        variance: as it was trained: with `learned_range` or `learned` the network has twice the channels.
        like: a tensor that has the samples' shape, (B, C, ...); give this or `shape`.
        enlarge: the samples are larger than `like` by this, in all dimensions but the channels.
        channels: of the samples, where `like` has other ones.
        shape: of one sample: [C, H, W].
        sampler: how samples are drawn; `{type: dpm_solver}` by default.
        steps: of the sampler.
        spacing: how its times are spread; own is what is usual for the process and the sampler.
        rho: bends the grid of `spacing: karras`.
        guidance: how far predictions are moved from those without conditions, or those of `guide`, to those with; 1 is off.
        guidance_interval: least and largest sigma / alpha at which guidance is on.
        guidance_rescale: from 0 to 1: how far the guided prediction's contrast is brought back to that of the plain one.
        guidance_ramp: guidance grows from none at the noisiest time to its full value.
        guide: a smaller or less trained network to be guided away from (autoguidance); with `unconditional` it is shown that.
        classifier: a network that tells classes of noisy samples, called as classifier(x, times): its gradient guides.
        classifier_scale: factor of that gradient.
        labels: key of the wanted classes, (B,), int64, for `classifier`.
        clip: the data that are seen on the way are limited to [-1, 1]; dynamic: to the quantile `clip_quantile` of their
            magnitudes, and scaled back (for strong guidance).
        clip_quantile: of `clip: dynamic`.
        conditions: further arguments of the network: {argument: state key}.
        unconditional: {argument: number}: what stands for no condition, as it was trained; needed for guidance without `guide`.
        sigma_min: sigma / alpha of the least noise, as it was trained, for `prediction: consistency`.
        average: in training run the running average of the network's weights (`train.ema`); in evaluation `eval.weights`
            decides.
        to_unit_range: samples, and the strip, are brought from [-1, 1] to [0, 1].
        out_strip: key for a picture of the way, for each sample: what the network saw at some steps, side by side,
            (B, C, H, stages * W); (B, stages, ...) where samples are no pictures.
        stages: how many; not more than steps.

    Raises:
        ConfigurationError: options that do not go together; the message tells which.

    Example:
        generator: generator
        process: {type: flow}
        prediction: velocity
        sampler: {type: euler}
        shape: [3, 64, 64]
        out: samples
    """

    detaches = True
    averages = (("average", True),)

    def __init__(
        self,
        *,
        out: StateOut,
        generator: NetworkName,
        process: ProcessOptions,
        prediction: Literal["eps", "x0", "v", "velocity", "edm", "previous_x", "consistency"] = "eps",
        variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "fixed_small",
        like: StateIn | None = None,
        enlarge: PositiveFloat = 1.0,
        channels: PositiveInt | None = None,
        shape: list[PositiveInt] | None = None,
        sampler: SamplerOptions | None = None,
        steps: PositiveInt = 20,
        spacing: Literal["own", "karras", "log_snr", "trailing", "leading", "linspace"] = "own",
        rho: PositiveFloat = 7.0,
        guidance: float = 1.0,
        guidance_interval: list[NonNegativeFloat] | None = None,
        guidance_rescale: Fraction = 0.0,
        guidance_ramp: bool = False,
        guide: NetworkName | None = None,
        classifier: NetworkName | None = None,
        classifier_scale: float = 1.0,
        labels: StateIn | None = None,
        clip: Literal["none", "static", "dynamic"] = "none",
        clip_quantile: Fraction = 0.995,
        conditions: dict[str, StateIn] | None = None,
        unconditional: dict[str, float] | None = None,
        sigma_min: PositiveFloat = 0.002,
        average: bool = False,
        to_unit_range: bool = False,
        out_strip: StateOut | None = None,
        stages: PositiveInt = 8,
    ) -> None:
        if (like is None) == (shape is None):
            raise ConfigurationError("diffusion_sample: give either 'like', a state key, or 'shape', e.g. [3, 64, 64]")
        if shape is not None and (enlarge != 1 or channels is not None):
            raise ConfigurationError("diffusion_sample: 'enlarge' and 'channels' go with 'like'; 'shape' says it all")
        if (classifier is None) != (labels is None):
            raise ConfigurationError("diffusion_sample: 'classifier' and 'labels' go together")
        if guide is not None and guidance == 1:
            raise ConfigurationError("diffusion_sample: 'guide' has no effect with 'guidance: 1'; about 2 is usual")
        self.out, self.out_strip, self.stages = out, out_strip, stages if out_strip is not None else 0
        self.network, self.guide, self.average = generator, guide, average
        self.process = create_process(process)
        self.x0_of = data_of(self.process, prediction, sigma_min)
        self.prediction: Prediction = "eps" if prediction == "previous_x" or prediction == "consistency" else prediction
        self.learned_variance = variance in ("learned", "learned_range")
        self.like, self.enlarge, self.channels, self.shape = like, enlarge, channels, shape
        self.sampler = create_sampler(with_variance(sampler or {"type": "dpm_solver"}, variance))
        self.steps, self.spacing, self.rho = steps, spacing, rho
        self.guidance = Guidance(guidance, guidance_interval, guidance_rescale, guidance_ramp)
        self.classifier, self.classifier_scale, self.labels = classifier, classifier_scale, labels
        self.transform = transform_of(clip, clip_quantile)
        self.conditions = dict(conditions or {})
        needed = guidance != 1 and guide is None
        self.unconditional = check_unconditional(unconditional, self.conditions, needed)
        self.to_unit_range = to_unit_range

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        conditions = read_conditions(self.conditions, state)
        networks = [name for name in (self.network, self.guide, self.classifier) if name is not None]
        with sampling(context, networks):
            drawn = sample(
                self._denoiser(conditions, state, context),
                self.process,
                self.sampler,
                self._noise(state, context),
                steps=self.steps,
                spacing=self.spacing,
                rho=self.rho,
                stages=self.stages,
            )
        return name_samples(drawn, self.out, self.out_strip, self.to_unit_range)

    def _noise(self, state: State, context: Context) -> Callable[[int], Tensor]:
        if self.like is None:
            assert self.shape is not None
            shape: Sequence[int] = self.shape
            device = context.device(self.network)
        else:
            like: Tensor = state[self.like]
            shape = (self.channels or like.shape[1], *(round(size * self.enlarge) for size in like.shape[2:]))
            device = like.device
        return lambda k: context.randn(shape, f"{self.out}/{k}", device)

    def _denoiser(self, conditions: dict[str, Any], state: State, context: Context) -> Denoiser:
        network: Callable[..., Any] = context.network(self.network)
        if self.average:
            network = averaged(context, self.network, "diffusion_sample")
        settings: dict[str, Any] = {
            "process": self.process, "prediction": self.prediction, "learned_variance": self.learned_variance,
            "x0_of": self.x0_of,
        }  # fmt: skip
        free = none_of(conditions, self.unconditional)
        denoiser: Denoiser
        if self.guide is not None:
            good = NetworkDenoiser(network, conditions=conditions, transform=self.transform, **settings)
            weak = NetworkDenoiser(context.network(self.guide), conditions={**conditions, **free}, **settings)
            denoiser = Autoguidance(good, weak, self.guidance)
        elif self.guidance.scale != 1:
            denoiser = ClassifierFree(
                network,
                conditions=conditions,
                transform=self.transform,
                unconditional=free,
                guidance=self.guidance,
                **settings,
            )
        else:
            denoiser = NetworkDenoiser(network, conditions=conditions, transform=self.transform, **settings)
        if self.classifier is None or self.labels is None:
            return denoiser
        gradient = class_gradient(context.network(self.classifier), state[self.labels])
        return ClassifierGuidance(denoiser, self.process, gradient, self.classifier_scale)


def data_of(process: Process, prediction: str, least: float = 0.0) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """What data a prediction means, by prediction, samples and times, where it is none that all processes have; else None."""
    if prediction == "previous_x":
        return Objective(process, "previous_x").x0_of
    if prediction == "consistency":
        return partial(_consistent, process, least)
    return None


def _consistent(process: Process, least: float, output: Tensor, x: Tensor, times: Tensor) -> Tensor:
    return boundary_x0(output, x, process.level(times).like(x), process.sigma_data, least)


def with_variance(sampler: Mapping[str, Any], variance: Variance) -> dict[str, Any]:
    """A sampler's options; an ancestral one has the model's variance unless it says another."""
    if sampler.get("type") in ("ancestral", "ddpm"):
        return {"variance": variance, **sampler}
    return dict(sampler)


def transform_of(kind: Literal["none", "static", "dynamic"], quantile: float = 0.995) -> Callable[[Tensor], Tensor] | None:
    """What is done to the data that are seen on the way."""
    if kind == "none":
        return None
    return clip() if kind == "static" else dynamic_threshold(quantile)


@contextmanager
def sampling(context: Context, networks: Sequence[str]) -> Iterator[None]:
    """Networks in evaluation mode, without gradients."""
    with ExitStack() as stack:
        stack.callback(torch.clear_autocast_cache)  # older releases of torch reuse weights cast without gradients
        stack.enter_context(torch.no_grad())
        for name in networks:
            stack.enter_context(evaluation_mode(context.network(name)))
        yield


def name_samples(drawn: Sampled, out: str, out_strip: str | None, unit_range: bool) -> dict[str, Any]:
    """Samples, and pictures of the way to them, as state entries."""

    def finished(x: Tensor) -> Tensor:
        return (x + 1) / 2 if unit_range else x

    entries = {out: finished(drawn.x)}
    if out_strip is not None and drawn.strip is not None:
        strip = drawn.strip
        if strip.dim() == 5:  # (B, stages, C, H, W)
            strip = strip.permute(0, 2, 3, 1, 4).flatten(3)
        entries[out_strip] = finished(strip)
    return entries
