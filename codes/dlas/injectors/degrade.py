"""Degrading images where the network runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlas.context import Context, mix_seed
from dlas.degradations import create_degradation
from dlas.degradations.base import Recipe
from dlas.degradations.device import degrade
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import DegradationOptions, PositiveInt, StateIn, StateOut


@INJECTORS.register("degrade")
class DegradeInjector(Injector):
    """out = a low-quality version of a batch of images, made on their device, each by a recipe of its own.

    Recipes and noise depend on the seed of the run and the place of each sample in its order alone: on neither the rest of the
    batch nor the number of processes, and they are the same after a restart.

    Args:
        in_: high-quality images, (B, 3, H, W) in [0, 1]; H and W multiples of `scale`.
        out: low-quality images, 1 / `scale` of the size.
        scale: how many times smaller the result is.
        degradation: `{type: realesrgan}` or another of `dlas list degradations`.
        target_size: cut a random square of this side from the high-quality image after it was degraded, and its partner; so
            blurs see what lies around. A multiple of `scale`; by default nothing is cut.
        out_hq: key for the high-quality image that belongs to `out`; needed with `target_size`.

    Raises:
        ConfigurationError: `target_size` is no multiple of `scale`, or `out_hq` is missing.
    """

    detaches = True

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        scale: PositiveInt,
        degradation: DegradationOptions,
        target_size: PositiveInt | None = None,
        out_hq: StateOut | None = None,
    ) -> None:
        if target_size is not None and (target_size % scale or out_hq is None):
            raise ConfigurationError(
                f"degrade: target_size {target_size} must be a multiple of scale {scale} and needs 'out_hq' for what is cut out"
            )
        self.source = in_
        self.out = out
        self.scale = scale
        self.degradation = create_degradation(degradation)
        self.target_size = target_size
        self.out_hq = out_hq

    @torch.no_grad()
    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        images: Tensor = state[self.source].float()
        rngs, recipes = self.recipes(images, context)
        low = degrade(images, recipes, [mix_seed(context.seed, p, self.out, "noise") for p in context.positions])
        high = images
        if self.target_size is not None:
            low, high = self._cut(low, high, rngs)
        return {self.out: low} if self.out_hq is None else {self.out: low, self.out_hq: high}

    def recipes(self, images: Tensor, context: Context) -> tuple[list[np.random.Generator], list[Recipe]]:
        """What is done to each image of a batch, and the generators that go on from there.

        Raises:
            ConfigurationError: the sides of the images are no multiples of the scale.
        """
        height, width = images.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ConfigurationError(
                f"degrade: '{self.source}' is {width} x {height} pixels; expected multiples of scale {self.scale}"
            )
        rngs = [np.random.default_rng(mix_seed(context.seed, p, self.out)) for p in context.positions]
        return rngs, [self.degradation.draw(rng, height, width, self.scale) for rng in rngs]

    def _cut(self, low: Tensor, high: Tensor, rngs: list[np.random.Generator]) -> tuple[Tensor, Tensor]:
        assert self.target_size is not None
        side, size = self.target_size // self.scale, self.target_size
        if min(low.shape[-2:]) < side:
            raise ConfigurationError(
                f"degrade: target_size {size} is larger than '{self.source}' ({high.shape[-1]} x {high.shape[-2]})"
            )
        lows, highs = [], []
        for small, large, rng in zip(low, high, rngs, strict=True):
            top, left = (int(rng.integers(length - side + 1)) for length in low.shape[-2:])
            lows.append(small[:, top : top + side, left : left + side])
            top, left = top * self.scale, left * self.scale
            highs.append(large[:, top : top + size, left : left + size])
        return torch.stack(lows), torch.stack(highs)
