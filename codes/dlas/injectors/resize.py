"""Injectors that change the size of images."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn import functional as F

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.layers.resize import imresize
from dlas.registry import INJECTORS
from dlas.types import PositiveFloat, PositiveInt, StateIn, StateOut


@INJECTORS.register("interpolate")
class InterpolateInjector(Injector):
    """``torch.nn.functional.interpolate``, to a factor or to a size.

    Args:
        in_: (B, C, ...) with as many spatial dimensions as `mode` works on.
        out: the resized tensor.
        scale_factor: factor for each spatial dimension (give this or `size`).
        size: a number for all spatial dimensions, or one for each.
        mode: kind of interpolation; corners are not aligned.

    Example:
        in: lq
        out: lq_enlarged
        scale_factor: 4
        mode: bilinear
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        scale_factor: PositiveFloat | None = None,
        size: PositiveInt | list[PositiveInt] | None = None,
        mode: Literal["nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area"] = "nearest",
    ) -> None:
        if (scale_factor is None) == (size is None):
            raise ConfigurationError("interpolate: give either 'scale_factor' or 'size'")
        self.input = in_
        self.out = out
        self.scale_factor = scale_factor
        self.size = size
        self.mode = mode

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: F.interpolate(state[self.input], self.size, self.scale_factor, self.mode)}


@INJECTORS.register("resize")
class ResizeInjector(Injector):
    """Bicubic resizing as MATLAB's ``imresize`` does it: the standard of the super-resolution literature.

    Args:
        in_: (B, C, H, W), floating point.
        out: the resized images, at least float32.
        scale: factor for both sides (give this or `size`).
        size: side of the result in pixels, or [height, width].
        antialias: widen the filter when shrinking.

    Example:
        in: gen
        out: gen_small
        scale: 0.25
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        scale: PositiveFloat | None = None,
        size: PositiveInt | list[PositiveInt] | None = None,
        antialias: bool = True,
    ) -> None:
        if (scale is None) == (size is None):
            raise ConfigurationError("resize: give either 'scale' or 'size'")
        if isinstance(size, list) and len(size) != 2:
            raise ConfigurationError(f"resize: 'size' is one number or [height, width], given: {size}")
        self.input = in_
        self.out = out
        self.scale = scale
        self.size: tuple[int, int] | None = None
        if size is not None:
            self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.antialias = antialias

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        image = state[self.input]
        image = image.to(torch.promote_types(image.dtype, torch.float32))  # mixed precision hands over bfloat16
        return {self.out: imresize(image, self.scale, size=self.size, antialias=self.antialias)}
