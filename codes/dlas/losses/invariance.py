"""Losses that ask a network to treat a scene alike however it lies in the picture: each runs the network once more."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context, mix_seed
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.losses.criteria import distance
from dlas.registry import LOSSES
from dlas.types import NetworkName, NonNegativeInt, PositiveFloat, PositiveInt, StateIn, StateIns

CORNERS = ("top_right", "bottom_left", "bottom_right")
"""Corners of an image besides the top left."""

MOTIONS = ("flip_vertical", "flip_horizontal", "quarter_turn", "half_turn", "three_quarter_turn")
"""Motions of an image that keep it on the pixel grid."""


class _Again:
    """Runs a network with one of its arguments replaced.

    Args:
        loss: name of the loss, for messages.
        network: name of the network.
        arguments: its arguments as under `in` of the injector `generator`.
        altered: index of the argument that is replaced.
        output: index of the result that is wanted, if there are several.
        detach: record no gradients.
    """

    def __init__(self, loss: str, network: str, arguments: Any, altered: int, output: int, detach: bool) -> None:
        self.arguments = list(arguments) if isinstance(arguments, list | tuple) else [arguments]
        if altered >= len(self.arguments) or not isinstance(self.arguments[altered], str):
            raise ConfigurationError(
                f"{loss}: input_alteration_index {altered} must be the place of a key in fake: {arguments}"
            )
        self.network = network
        self.key: str = self.arguments[altered]
        self.altered = altered
        self.output = output
        self.detach = detach

    def __call__(self, state: State, context: Context, replacement: Tensor) -> Tensor:
        arguments = [
            replacement if index == self.altered else self._argument(item, state) for index, item in enumerate(self.arguments)
        ]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
            result = context.network(self.network)(*arguments)
        tensor = result[self.output] if isinstance(result, list | tuple) else result
        assert isinstance(tensor, Tensor)
        return tensor

    @staticmethod
    def _argument(item: Any, state: State) -> Any:
        if not isinstance(item, str):
            return item
        return None if item == "None" else state[item]


@LOSSES.register("translational")
class TranslationalLoss(Loss):
    """Distance between a network's outputs for two overlapping patches of one image, where they show the same.

    `real` is the output for the top-left patch. At each step one of the three other corners is drawn, the network is run on
    that patch (`<key>_top_right`, ..., as the injector `image_patch` writes them), and the square that all four patches share
    is compared. The squares lie on each other only if `overlap` is 2 patch_size less the side of the whole picture, in pixels
    of the output; that is checked when the file is read, where the sizes are known from it.

    Args:
        generator: the network.
        criterion: `l1` mean |d|; `l2` mean d^2.
        real: the network's output for the top-left patch, (B, C, patch_size, patch_size).
        fake: the arguments of the network: a key, or a list of keys and literals, as for the injector `generator`.
        patch_size: side of the outputs, in pixels.
        overlap: side of the shared square in pixels, below `patch_size`.
        input_alteration_index: which argument is the patch.
        generator_output_index: which entry of the network's result is compared, if it returns several.
        detach_fake: run the network on the other patch without recording gradients: only `real` learns.

    Raises:
        ConfigurationError: the sizes do not go together, or there is no such argument.

    Example:
        generator: generator
        criterion: l1
        real: gen
        fake: patch
        patch_size: 128
        overlap: 64
    """

    def __init__(
        self,
        *,
        generator: NetworkName,
        criterion: Literal["l1", "l2"],
        real: StateIn,
        fake: StateIns,
        patch_size: PositiveInt,
        overlap: PositiveInt,
        input_alteration_index: NonNegativeInt = 0,
        generator_output_index: NonNegativeInt = 0,
        detach_fake: bool = False,
    ) -> None:
        super().__init__()
        if overlap >= patch_size:
            raise ConfigurationError(f"translational: overlap {overlap} must be below patch_size {patch_size}")
        self.run = _Again("translational", generator, fake, input_alteration_index, generator_output_index, detach_fake)
        self.criterion = criterion
        self.real = real
        self.patch_size = patch_size
        self.overlap = overlap

    def forward(self, state: State, context: Context) -> Tensor:
        return self.compare(state, context, CORNERS[mix_seed(context.seed, context.step, self.real) % len(CORNERS)])

    def compare(self, state: State, context: Context, corner: str) -> Tensor:
        """The loss for one of `CORNERS`."""
        real = state[self.real]
        if tuple(real.shape[-2:]) != (self.patch_size, self.patch_size):
            raise ValueError(
                f"translational: '{self.real}' has shape {tuple(real.shape)}, but patch_size is {self.patch_size}; "
                "it is the size of the network's outputs: the size of its input patch times the scale"
            )
        far, near = slice(self.patch_size - self.overlap, self.patch_size), slice(self.overlap)
        rows = far if corner == "top_right" else near
        columns = far if corner == "bottom_left" else near
        moved = self.run(state, context, state[f"{self.run.key}_{corner}"])
        return distance(self.criterion, real[..., far, far], moved[..., rows, columns])


@LOSSES.register("geometric")
class GeometricLoss(Loss):
    """Distance between a network's output and its output for the turned or mirrored input, brought back.

    At each step one of five motions is drawn: mirrored vertically or horizontally, or turned by 90, 180 or 270 degrees.

    Args:
        generator: the network.
        criterion: `l1` mean |d|; `l2` mean d^2.
        real: the network's output, (B, C, H, W).
        fake: the arguments of the network: a key, or a list of keys and literals, as for the injector `generator`.
        input_alteration_index: which argument is moved, (B, C, h, w).
        generator_output_index: which entry of the network's result is compared, if it returns several.
        detach_fake: run the network on the moved input without recording gradients: only `real` learns.

    Raises:
        ConfigurationError: there is no such argument.
    """

    def __init__(
        self,
        *,
        generator: NetworkName,
        criterion: Literal["l1", "l2"],
        real: StateIn,
        fake: StateIns,
        input_alteration_index: NonNegativeInt = 0,
        generator_output_index: NonNegativeInt = 0,
        detach_fake: bool = False,
    ) -> None:
        super().__init__()
        self.run = _Again("geometric", generator, fake, input_alteration_index, generator_output_index, detach_fake)
        self.criterion = criterion
        self.real = real

    def forward(self, state: State, context: Context) -> Tensor:
        return self.compare(state, context, MOTIONS[mix_seed(context.seed, context.step, self.real) % len(MOTIONS)])

    def compare(self, state: State, context: Context, motion: str) -> Tensor:
        """The loss for one of `MOTIONS`."""
        moved = self.run(state, context, _move(state[self.run.key], motion, back=False))
        return distance(self.criterion, _move(moved, motion, back=True), state[self.real])


@LOSSES.register("recursive")
class RecursiveLoss(Loss):
    """Distance between a network's output and what it makes of that output, made small again.

    Args:
        generator: the network.
        criterion: `l1` mean |d|; `l2` mean d^2.
        real: the network's output, (B, C, H, W).
        fake: the arguments of the network: a key, or a list of keys and literals, as for the injector `generator`.
        recursive_depth: how often the output is fed back.
        downsample_factor: factor on the sides of the output before it is fed back, by nearest neighbour; 1 / scale.
        input_alteration_index: which argument the output takes the place of.
        generator_output_index: which entry of the network's result is fed back, if it returns several.

    Raises:
        ConfigurationError: there is no such argument.
    """

    def __init__(
        self,
        *,
        generator: NetworkName,
        criterion: Literal["l1", "l2"],
        real: StateIn,
        fake: StateIns,
        recursive_depth: PositiveInt,
        downsample_factor: PositiveFloat,
        input_alteration_index: NonNegativeInt = 0,
        generator_output_index: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.run = _Again("recursive", generator, fake, input_alteration_index, generator_output_index, False)
        self.criterion = criterion
        self.real = real
        self.depth = recursive_depth
        self.factor = downsample_factor

    def forward(self, state: State, context: Context) -> Tensor:
        output = state[self.real]
        for _ in range(self.depth):
            output = self.run(state, context, F.interpolate(output, scale_factor=self.factor, mode="nearest"))
        return distance(self.criterion, output, state[self.real])


def _move(image: Tensor, motion: str, back: bool) -> Tensor:
    if motion == "flip_vertical":
        return image.flip(-2)
    if motion == "flip_horizontal":
        return image.flip(-1)
    turns = 1 + MOTIONS[2:].index(motion)
    return torch.rot90(image, -turns if back else turns, (-2, -1))
