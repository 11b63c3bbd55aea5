"""Injectors that take a part of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import NonNegativeInt, PositiveInt, StateIn, StateOut


@INJECTORS.register("slice")
class SliceInjector(Injector):
    """``x[start:end:step]`` along one dimension.

    Args:
        in_: tensor of any shape.
        out: the part.
        dim: dimension that is cut; negative counts from the last.
        start: first index; negative counts from the end, none is the first.
        end: index after the last one; negative counts from the end, none is the end.
        step: distance between indices.
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        dim: int,
        start: int | None = None,
        end: int | None = None,
        step: PositiveInt = 1,
    ) -> None:
        self.input = in_
        self.out = out
        self.dim = dim
        self.part = slice(start, end, step)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tensor = state[self.input]
        index = [slice(None)] * tensor.ndim
        index[self.dim] = self.part
        return {self.out: tensor[tuple(index)]}


@INJECTORS.register("channel_clip")
class ChannelClipInjector(Injector):
    """The channels ``channel_low`` to ``channel_high - 1`` of a (B, C, ...) tensor.

    Args:
        in_: (B, C, ...).
        out: (B, channel_high - channel_low, ...).
        channel_low: first channel kept.
        channel_high: first channel after it that is left out.

    Example:
        in: gen
        out: first_three
        channel_low: 0
        channel_high: 3
    """

    def __init__(self, *, in_: StateIn, out: StateOut, channel_low: NonNegativeInt, channel_high: PositiveInt) -> None:
        if channel_low >= channel_high:
            raise ConfigurationError(f"channel_clip: channel_low {channel_low} must be below channel_high {channel_high}")
        self.input = in_
        self.out = out
        self.channels = slice(channel_low, channel_high)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: state[self.input][:, self.channels]}


@INJECTORS.register("squeeze")
class SqueezeInjector(Injector):
    """Removes a dimension of size 1.

    Args:
        in_: tensor whose dimension `dim` has size 1.
        out: the tensor without it.
        dim: the dimension.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, dim: int) -> None:
        self.input = in_
        self.out = out
        self.dim = dim

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tensor = state[self.input]
        if tensor.shape[self.dim] != 1:  # torch would hand it back unchanged
            raise ValueError(f"squeeze: '{self.input}' has shape {tuple(tensor.shape)}; dimension {self.dim} is not of size 1")
        return {self.out: tensor.squeeze(self.dim)}


@INJECTORS.register("indices_extractor")
class IndicesExtractorInjector(Injector):
    """Names the entries of a dimension: ``out[i] = x.select(dim, i)``.

    Args:
        in_: tensor with at least as many entries along `dim` as there are names.
        out: list of keys, for the first, second, ... entry.
        dim: the dimension that is taken apart (it vanishes).
    """

    def __init__(self, *, in_: StateIn, out: list[StateOut], dim: PositiveInt = 1) -> None:
        self.input = in_
        self.out = out
        self.dim = dim

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        tensor = state[self.input]
        return {name: tensor.select(self.dim, index) for index, name in enumerate(self.out)}


@INJECTORS.register("image_patch")
class ImagePatchInjector(Injector):
    """The four corner patches of an image, with all its channels.

    Besides `out` (the top-left patch) it writes ``<out>_top_left``, ``<out>_top_right``, ``<out>_bottom_left`` and
    ``<out>_bottom_right``: overlapping views of the same scene, for a translational loss. Two patches of size p share a strip
    of 2p - (image size) pixels. In evaluation all five are the whole image, untouched.

    Args:
        in_: (B, C, H, W), H and W at least `patch_size`.
        out: the top-left patch (B, C, patch_size, patch_size).
        patch_size: side of a patch in pixels.
        resize: patches are brought to this side (bilinear with antialiasing); none leaves them.
    """

    derived_outputs = ("{out}_top_left", "{out}_top_right", "{out}_bottom_left", "{out}_bottom_right")

    def __init__(self, *, in_: StateIn, out: StateOut, patch_size: PositiveInt, resize: PositiveInt | None = None) -> None:
        self.input = in_
        self.out = out
        self.patch_size = patch_size
        self.resize = resize
        self.keys = [out, *(template.format(out=out) for template in self.derived_outputs)]

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        image = state[self.input]
        if not context.training:
            return dict.fromkeys(self.keys, image)
        size = self.patch_size
        if min(image.shape[-2:]) < size:
            raise ValueError(
                f"image_patch: '{self.input}' has shape {tuple(image.shape)}, smaller than patch_size {size}; "
                "lower patch_size or raise the data set's target_size"
            )
        top_left, top_right = image[..., :size, :size], image[..., :size, -size:]
        bottom_left, bottom_right = image[..., -size:, :size], image[..., -size:, -size:]
        corners = [self._resized(corner) for corner in (top_left, top_right, bottom_left, bottom_right)]
        return dict(zip(self.keys, [corners[0], *corners], strict=True))

    def _resized(self, patch: Tensor) -> Tensor:
        if self.resize is None:
            return patch
        return F.interpolate(patch, size=(self.resize, self.resize), mode="bilinear", antialias=True)


@INJECTORS.register("margin_removal")
class MarginRemovalInjector(Injector):
    """Cuts a margin off all four sides of an image.

    Args:
        in_: (B, C, H, W).
        out: (B, C, H - 2 margin, W - 2 margin).
        margin: pixels removed at each side.
        random_shift_max: in training the window of each sample is moved by up to this many pixels, vertically and
            horizontally; at most `margin`.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, margin: NonNegativeInt, random_shift_max: NonNegativeInt = 0) -> None:
        if random_shift_max > margin:
            raise ConfigurationError(
                f"margin_removal: random_shift_max {random_shift_max} would move the window out of the image; "
                f"it may be at most the margin, {margin}"
            )
        self.input = in_
        self.out = out
        self.margin = margin
        self.random_shift_max = random_shift_max

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        image = state[self.input]
        height, width = (size - 2 * self.margin for size in image.shape[-2:])
        if min(height, width) < 1:
            raise ValueError(f"margin_removal: nothing of '{self.input}' {tuple(image.shape)} is left by margin {self.margin}")
        if self.random_shift_max == 0 or not context.training:
            return {self.out: image[..., self.margin : self.margin + height, self.margin : self.margin + width]}
        draws = context.rand((2,), f"margin_removal:{self.out}", image.device)
        shifts = (draws * (2 * self.random_shift_max + 1)).long() - self.random_shift_max + self.margin
        rows = shifts[:, :1] + torch.arange(height, device=image.device)
        columns = shifts[:, 1:] + torch.arange(width, device=image.device)
        return {self.out: _take(image, rows, columns)}


@INJECTORS.register("random_crop")
class RandomCropInjector(Injector):
    """A random square of each image, brought to one size by nearest-neighbour sampling.

    The square's area is uniform between ``dim_out / dim_in`` of the image and all of it, its place uniform over the image.

    Args:
        in_: (B, C, dim_in, dim_in).
        out: (B, C, dim_out, dim_out).
        dim_in: side of the image in pixels.
        dim_out: side of the result in pixels, at most `dim_in`.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, dim_in: PositiveInt, dim_out: PositiveInt) -> None:
        if dim_out > dim_in:
            raise ConfigurationError(f"random_crop: dim_out {dim_out} must not exceed dim_in {dim_in}")
        self.input = in_
        self.out = out
        self.dim_in = dim_in
        self.dim_out = dim_out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        image = state[self.input]
        if tuple(image.shape[-2:]) != (self.dim_in, self.dim_in):
            raise ValueError(f"random_crop: '{self.input}' has shape {tuple(image.shape)}, but dim_in is {self.dim_in}")
        area, top, left = context.rand((3, 1), f"random_crop:{self.out}", image.device).unbind(1)
        least = self.dim_out / self.dim_in
        side = (least + (1 - least) * area).sqrt() * self.dim_in
        centres = (torch.arange(self.dim_out, device=image.device) + 0.5) / self.dim_out
        rows, columns = ((start * (self.dim_in - side) + centres * side).long() for start in (top, left))
        # Rounding may carry the last centre of a full-size square onto the edge.
        return {self.out: _take(image, rows.clamp(max=self.dim_in - 1), columns.clamp(max=self.dim_in - 1))}


def _take(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``out[b, c, i, j] = image[b, c, rows[b, i], columns[b, j]]``, without a loop over the batch."""
    sample = torch.arange(image.shape[0], device=image.device)[:, None, None, None]
    channel = torch.arange(image.shape[1], device=image.device)[:, None, None]
    return image[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
