"""Injectors that draw random numbers.

Each draw is a function of (seed of the run, position of the sample, `out` key), so it does not change with the way in which a
batch is cut into micro-batches or spread over processes, nor after a resume.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dlas.context import Context, mix_seed
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import Fraction, PositiveInt, StateIn, StateOut


@INJECTORS.register("noise")
class NoiseInjector(Injector):
    """Standard normal noise.

    Args:
        in_: tensor that gives the batch size and the device.
        out: (B, *shape), float32.
        shape: shape of one sample's noise.
    """

    detaches = True

    def __init__(self, *, in_: StateIn, out: StateOut, shape: list[PositiveInt]) -> None:
        self.input = in_
        self.out = out
        self.shape = tuple(shape)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        like = state[self.input]
        _check_batch("noise", self.input, like, context)
        return {self.out: context.randn(self.shape, f"noise:{self.out}", like.device)}


@INJECTORS.register("add_noise")
class AddNoiseInjector(Injector):
    """Adds random noise: ``x + scale * n``.

    Args:
        in_: floating-point tensor (B, ...).
        out: tensor of the same shape and type.
        scale: a number, or the key of a number or of a tensor with one value per sample, or of any shape that broadcasts.
        mode: ``normal``: n is standard normal; ``uniform``: n is uniform in [0, 1).
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        scale: StateIn | float | None = None,
        mode: Literal["normal", "uniform"] = "normal",
    ) -> None:
        self.input = in_
        self.out = out
        self.scale = 1.0 if scale is None else scale
        self.mode = mode

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tensor = state[self.input]
        _check_batch("add_noise", self.input, tensor, context)
        draw = context.randn if self.mode == "normal" else context.rand
        noise = draw(tensor.shape[1:], f"add_noise:{self.out}", tensor.device).to(tensor.dtype)
        scale = state[self.scale] if isinstance(self.scale, str) else self.scale
        if isinstance(scale, Tensor) and scale.ndim == 1:
            scale = scale.view(-1, *[1] * (tensor.ndim - 1))
        return {self.out: tensor + scale * noise}


@INJECTORS.register("stylegan2_noise")
class StyleGan2NoiseInjector(Injector):
    """Latents for a style-based generator: a list of one latent, or of two for style mixing.

    Whether styles are mixed is decided once per step, for the whole batch.

    Args:
        in_: tensor that gives the batch size and the device.
        out: list of one or two standard normal tensors (B, latent_dim).
        mix_probability: chance of two latents.
        latent_dim: size of a latent.
    """

    detaches = True

    def __init__(self, *, in_: StateIn, out: StateOut, mix_probability: Fraction = 0.9, latent_dim: PositiveInt = 512) -> None:
        self.input = in_
        self.out = out
        self.mix_probability = mix_probability
        self.latent_dim = latent_dim

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        like = state[self.input]
        _check_batch("stylegan2_noise", self.input, like, context)
        mixed = mix_seed(context.seed, context.step, f"stylegan2_noise:{self.out}") < self.mix_probability * 2**63
        latents = [
            context.randn((self.latent_dim,), f"stylegan2_noise:{self.out}:{index}", like.device) for index in range(1 + mixed)
        ]
        return {self.out: latents}


@INJECTORS.register("mix_and_label")
class MixAndLabelInjector(Injector):
    """Takes each sample from one of several tensors, at random and evenly, and tells from which.

    Args:
        in_: keys of at least two tensors of one shape (B, ...).
        out: (B, ...), sample b from the tensor number ``out_labels[b]``.
        out_labels: (B,), int64.
    """

    def __init__(self, *, in_: list[StateIn], out: StateOut, out_labels: StateOut) -> None:
        if len(in_) < 2:
            raise ConfigurationError(f"mix_and_label: 'in' needs at least two keys, given: {in_}")
        self.inputs = in_
        self.out = out
        self.out_labels = out_labels

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        choices = torch.stack([state[key] for key in self.inputs])
        _check_batch("mix_and_label", self.inputs[0], choices[0], context)
        labels = (context.rand((), f"mix_and_label:{self.out}", choices.device) * len(choices)).long()
        return {self.out: choices[labels, torch.arange(len(labels), device=choices.device)], self.out_labels: labels}


def _check_batch(injector: str, key: str, tensor: Tensor, context: Context) -> None:
    if len(tensor) != len(context.positions):
        raise ValueError(
            f"{injector}: '{key}' has {len(tensor)} entries in its first dimension, but the micro-batch has "
            f"{len(context.positions)} samples; noise belongs to samples, so draw it before dimensions are moved into the batch"
        )
