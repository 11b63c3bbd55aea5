"""Normalising flows: how likely they find pictures, pictures drawn from them, and how much these differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dlas.context import Context
from dlas.errors import ConfigurationError, TrainingError
from dlas.injectors.base import Injector, State
from dlas.injectors.networks import evaluation_mode
from dlas.registry import INJECTORS
from dlas.types import NetworkName, NonNegativeFloat, StateIn, StateOut


class ConditionalFlow(Protocol):
    """What these injectors call of a network."""

    quant: float
    multiple: int  # of the sides of low-resolution pictures

    def encode(
        self, picture: Tensor, low_res: Tensor, noise: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Latents; bits for each pixel position, (B,); what is of no interest here."""

    def decode(self, latents: Sequence[Tensor], low_res: Tensor) -> Tensor:
        """The picture of latents."""

    def latent_sizes(self, low_res: Tensor) -> list[tuple[int, ...]]:
        """Of one sample."""


def _flow(context: Context, name: str) -> ConditionalFlow:
    network = context.network(name)
    network = network.module if isinstance(network, DistributedDataParallel) else network
    if not (hasattr(network, "encode") and hasattr(network, "latent_sizes")):
        raise TrainingError(f"network '{name}' is a {type(network).__name__}, and a conditional flow is needed: srflow")
    return cast("ConditionalFlow", network)


def _whole(flow: ConditionalFlow, picture: Tensor, low_res: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the last rows and columns, where the sides are no multiples that the flow takes."""
    height, width = (side // flow.multiple * flow.multiple for side in low_res.shape[-2:])
    scale = picture.shape[-1] // low_res.shape[-1]
    return picture[..., : height * scale, : width * scale], low_res[..., :height, :width]


@INJECTORS.register("flow_nll")
class FlowNLLInjector(Injector):
    """The negative log-likelihood of pictures: what a flow is trained with, by the loss `direct`, and one of `eval.values`.

    Two conventions. In `pixel`s as published for SRFlow: bits for each pixel position, all channels together, and the
    noise that is added in training counts by log2(quant) for a position. In `dimension`s as flows are compared: bits for each
    number of a picture that has whole steps of 1 / quant, a bound of its discrete likelihood; noise of one step is always
    added, and counts by log2(quant) for each number. With the noise, of C channels: dimension = (pixel - log2(quant)) / C +
    log2(quant).

    Args:
        generator: the flow.
        hq: pictures, (B, C, H, W) in [0, 1]. Their last rows and columns are left out where the flow takes multiples of a
            number only.
        lq: what they are conditioned on, (B, C, H / scale, W / scale).
        out: bits, (B,).
        unit: `pixel`, for training and for comparison with what is published; or `dimension`, whose noise depends on the seed
            of the run and the place of each sample in its set alone.

    Source: Lugmayr et al., "SRFlow", ECCV 2020, equation 2; Theis et al., "A note on the evaluation of generative models", ICLR
    2016, section 3.1.
    """

    def __init__(
        self,
        *,
        generator: NetworkName,
        out: StateOut,
        hq: StateIn = "hq",
        lq: StateIn = "lq",
        unit: Literal["pixel", "dimension"] = "pixel",
    ) -> None:
        self.network = generator
        self.out = out
        self.hq = hq
        self.lq = lq
        self.unit = unit

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        flow = _flow(context, self.network)
        picture, low_res = _whole(flow, state[self.hq], state[self.lq])
        if self.unit == "pixel":
            return {self.out: context.network(self.network)(picture, low_res)[1]}
        noise = context.rand(picture.shape[1:], f"{self.out}/noise", picture.device)
        step = math.log2(flow.quant)
        return {self.out: (flow.encode(picture, low_res, noise)[1] - step) / picture.shape[1] + step}


@INJECTORS.register("flow_gaussian_nll", "flownet_gaussian")
class FlowGaussianNLLInjector(Injector):
    """How normal the latents of pictures are: the mean of ln N(z; 0, 1) over all their numbers.

    In spite of its name, which is DL-Art-School's, it is the log-likelihood, not its negative. Standard normal latents have
    -1.419; lower means that they are wider. It tells a flow that has learned its training set by heart: of other pictures it
    makes latents of a large deviation.

    Args:
        generator: the flow.
        hq: pictures, (B, C, H, W) in [0, 1], best of none that were trained on.
        lq: what they are conditioned on.
        out: the mean of each sample, (B,).
    """

    detaches = True

    def __init__(self, *, generator: NetworkName, out: StateOut, hq: StateIn = "hq", lq: StateIn = "lq") -> None:
        self.network = generator
        self.out = out
        self.hq = hq
        self.lq = lq

    @torch.no_grad()
    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        flow = _flow(context, self.network)
        latents, *_ = flow.encode(*_whole(flow, state[self.hq], state[self.lq]))
        numbers = torch.cat([each.flatten(1) for each in latents], dim=1)
        return {self.out: -0.5 * (numbers.square().mean(1) + math.log(2 * math.pi))}


@INJECTORS.register("flow_sample")
class FlowSampleInjector(Injector):
    """Draws pictures from a flow, without gradients and in evaluation mode.

    What is drawn depends on the seed of the run and the place of each sample in its set alone.

    Args:
        generator: the flow.
        lq: what pictures are conditioned on, (B, C, h, w). Its last row and column are repeated where the flow takes multiples
            of a number only, and what comes of them is cut off.
        out: pictures, not clamped: (B, C, H, W), or (B, S, C, H, W) for S heats.
        heat: standard deviation of the latents. 0: the one most likely picture in them; 1: the distribution that was learned. A
            list of heats gives a series of pictures, such as `eval.strips` shows, with latents of its own for each.

    Source: Lugmayr et al., "SRFlow", ECCV 2020, section 3.6.
    """

    detaches = True

    def __init__(
        self,
        *,
        generator: NetworkName,
        out: StateOut,
        lq: StateIn = "lq",
        heat: NonNegativeFloat | list[NonNegativeFloat] = 0.9,
    ) -> None:
        self.network = generator
        self.out = out
        self.lq = lq
        self.heats = heat if isinstance(heat, list) else [heat]
        self.series = isinstance(heat, list)

    @torch.no_grad()
    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        flow = _flow(context, self.network)
        height, width = state[self.lq].shape[-2:]
        low_res = F.pad(state[self.lq], (0, -width % flow.multiple, 0, -height % flow.multiple), mode="replicate")
        with evaluation_mode(context.network(self.network)):
            pictures = []
            for number, heat in enumerate(self.heats):
                latents = [
                    heat * context.randn(size, f"{self.out}/{number}/latent {level}", low_res.device)
                    for level, size in enumerate(flow.latent_sizes(low_res))
                ]
                picture = flow.decode(latents, low_res)
                scale = picture.shape[-1] // low_res.shape[-1]
                pictures.append(picture[..., : height * scale, : width * scale])
        return {self.out: torch.stack(pictures, dim=1) if self.series else pictures[0]}


@INJECTORS.register("diversity")
class DiversityInjector(Injector):
    """How much several pictures of one input differ: a figure for `eval.values`.

    Args:
        in_: (B, S, C, H, W), S samples of each input in [0, 1], at least 2; they are rounded to 8 bits.
        out: the figure of each sample, (B,).
        measure: `deviation`: the standard deviation over the samples, mean over pixels and channels, in steps of 8 bits.
            `local_gain`: by how many percent of it the squared error of the best sample falls where the best sample may be
            chosen at each pixel; so it counts what is different and right. NTIRE's score of the super-resolution space is this
            with LPIPS in place of squared errors, and does not compare with it.
        target: key of the true pictures, for `local_gain`.

    Raises:
        ConfigurationError: `local_gain` without a target.

    Source: Lugmayr et al., "NTIRE 2021 Learning the Super-Resolution Space Challenge", CVPR Workshops 2021, section 3.
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        measure: Literal["deviation", "local_gain"] = "deviation",
        target: StateIn | None = None,
    ) -> None:
        if measure == "local_gain" and target is None:
            raise ConfigurationError("measure: local_gain compares with the true picture: name it as 'target'")
        self.input = in_
        self.out = out
        self.target = target if measure == "local_gain" else None

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        samples = state[self.input]
        if samples.dim() != 5 or samples.shape[1] < 2:
            given = " x ".join(map(str, samples.shape))
            raise TrainingError(f"diversity: '{self.input}' must hold 2 samples or more of each input, 5-D; it is {given}")
        samples = _in_steps(samples)
        if self.target is None:
            return {self.out: samples.std(1).mean((1, 2, 3))}
        error = (samples - _in_steps(state[self.target])[:, None]).square().mean(2)  # of each sample and pixel
        best = error.mean((2, 3)).amin(1)
        chosen = error.amin(1).mean((1, 2))
        return {self.out: torch.where(best > 0, 100 * (best - chosen) / best, 0.0)}


def _in_steps(picture: Tensor) -> Tensor:
    return (picture.float().clamp(0, 1) * 255).round()
