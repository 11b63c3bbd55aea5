"""The steps of one level of a conditional flow, run together.

Most of a step's work is in the first convolutions of its two subnets, which see hundreds of channels of the condition and few
or none of what is mapped. Their part over the condition is done for many steps at once, and where the condition's channels are
nearest-neighbour enlargements of coarser ones, on the coarse ones: the result is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dlas.layers.flow import ConditionalAffine, FlowStep, Maps, Seen, linear_log_density
from dlas.layers.kept import Kept

AT_ONCE = 2**27
"""Most numbers that the part over the condition may have at a time: 512 MiB in float32."""

Memory = Literal["keep", "recompute", "invert"]
"""Activations for the backward pass: kept; recomputed from the input of each step; or rebuilt from the output of the level."""


@dataclass(frozen=True)
class Condition:
    """What a level's maps follow from.

    Args:
        fine: (B, C, H, W).
        coarse: (B, D, H / factor, W / factor): more channels, as if they were enlarged by nearest neighbour.
    """

    fine: Tensor
    coarse: Tensor | None = None

    @property
    def factor(self) -> int:
        """By which `coarse` is to be enlarged."""
        return 1 if self.coarse is None else self.fine.shape[-1] // self.coarse.shape[-1]

    def whole(self) -> Tensor:
        """(B, C + D, H, W)."""
        if self.coarse is None:
            return self.fine
        return torch.cat((self.fine, F.interpolate(self.coarse, size=self.fine.shape[-2:], mode="nearest")), dim=1)

    def to(self, dtype: torch.dtype) -> Condition:
        """In other numbers."""
        return Condition(self.fine.to(dtype), None if self.coarse is None else self.coarse.to(dtype))


def _of_enlarged(weight: Tensor, factor: int) -> Tensor:
    """Enlargement by nearest neighbour and a 3x3 convolution as one with 2x2: (M, D, 3, 3) -> (M kinds^2, D, 2, 2).

    Along a side the first copy of a pixel sees the pixel before and the pixel, the last one the pixel and the one after; those
    between, a third kind where the factor is above 2, see the pixel alone.
    """
    first, last, between = ((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)), ((0, 0, 0), (1, 1, 1))
    kinds = torch.tensor((first, last, between)[: min(factor, 3)]).to(weight)  # (kinds, tap of 2, tap of 3)
    return torch.einsum("mdij,aui,bvj->mabduv", weight, kinds, kinds).flatten(0, 2)


def _enlarged(made: Tensor, factor: int) -> Tensor:
    """What a padded convolution by `_of_enlarged` makes, (B, M kinds^2, h + 1, w + 1), in its places: (B, M, H, W)."""
    kinds = min(factor, 3)
    made = made.unflatten(1, (-1, kinds, kinds))
    height, width = made.shape[-2] - 1, made.shape[-1] - 1
    places = [0, *[2] * (factor - 2), 1]  # kinds in order
    rows = [
        torch.stack([made[:, :, a, b, a % 2 : a % 2 + height, b % 2 : b % 2 + width] for b in places], dim=-1) for a in places
    ]
    return torch.stack(rows, dim=3).flatten(4, 5).flatten(2, 3)


class FirstLayers(NamedTuple):
    """The first convolutions of the subnets of n steps, each with its normalisation, by what they see.

    Args:
        fine: (2 n hidden, C, 3, 3), of `Condition.fine`: of each step the injector's, then the coupling's.
        coarse: (2 n hidden kinds^2, D, 2, 2), of `Condition.coarse`, see `_of_enlarged`.
        bias: (2 n hidden,).
        kept: (hidden, kept, 3, 3) of each step, of the channels that the coupling keeps.
    """

    fine: Tensor
    coarse: Tensor | None
    bias: Tensor
    kept: tuple[Tensor, ...]

    @staticmethod
    def of(affines: Sequence[ConditionalAffine], condition: Condition) -> FirstLayers:
        """Those of these maps."""
        weights, biases, kept = [], [], []
        for affine in affines:
            for subnet in (affine.fFeatures, affine.fAffine):
                weight, bias = subnet.first.as_one()
                weights.append(weight)
                biases.append(bias)
            weights[-1], own = weights[-1][:, affine.kept :], weights[-1][:, : affine.kept]
            kept.append(own)
        weight, bias = torch.cat(weights), torch.cat(biases)
        if condition.coarse is None:
            return FirstLayers(weight, None, bias, tuple(kept))
        fine, coarse = weight.split((condition.fine.shape[1], condition.coarse.shape[1]), dim=1)
        return FirstLayers(fine, _of_enlarged(coarse, condition.factor), bias, tuple(kept))

    def of_condition(self, condition: Condition, first: int, last: int) -> Tensor:
        """(B, last - first, H, W): channels of what they make of the condition."""
        made = F.conv2d(condition.fine, self.fine[first:last], self.bias[first:last], padding=1)
        if self.coarse is None or condition.coarse is None:
            return made
        kinds = len(self.coarse) // len(self.fine)
        coarse = F.conv2d(condition.coarse, self.coarse[first * kinds : last * kinds], padding=1)
        return made + _enlarged(coarse, condition.factor)


class Level:
    """Steps with as many channels and the same condition, one after the other.

    Args:
        steps: of a flow's module, to which they belong.
    """

    def __init__(self, steps: Sequence[FlowStep]) -> None:
        self.steps = list(steps)
        self._first_layers: Kept[FirstLayers] = Kept()

    def encode(self, x: Tensor, condition: Condition, memory: Memory = "keep") -> tuple[Tensor, Tensor]:
        """(B, channels, H, W) -> the same shape, and what is added to ln p of each sample, (B,)."""
        if any(step.fitting for step in self.steps):
            self._fit(x, condition)
        if memory == "keep" or not torch.is_grad_enabled():
            return self._encode(x, condition)
        if memory == "invert":
            return Inverted.apply(self, x, condition.fine, condition.coarse, *self.learned())
        log_density = linear_log_density(self.steps, x.shape[2] * x.shape[3]).expand(len(x))
        for step in self.steps:
            each = Level([step])
            x, more = checkpoint(each._maps, x, condition, use_reentrant=False, preserve_rng_state=False)
            log_density = log_density + more
        return x, log_density

    def decode(self, z: Tensor, condition: Condition) -> Tensor:
        """The inverse of `encode`. Where `z` has n times as many samples as the condition, n in a row belong to one of its."""
        for step, seen in self._each_sees(condition, len(z), reverse=True):
            z = step.decode(z, seen)
        return z

    def learned(self) -> list[Tensor]:
        """Weights of the steps that get gradients."""
        return [weight for step in self.steps for weight in step.parameters() if weight.requires_grad]

    def _encode(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        log_density = linear_log_density(self.steps, x.shape[2] * x.shape[3]).expand(len(x))
        x, more = self._maps(x, condition)
        return x, log_density + more

    def _maps(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        log_density = x.new_zeros(len(x))
        for step, seen in self._each_sees(condition, len(x)):
            x, more = step.encode(x, seen)
            log_density = log_density + more
        return x, log_density

    def _fit(self, x: Tensor, condition: Condition) -> None:
        # Each normalisation has to see what it is to normalise, so nothing is done ahead or together. No way back is kept from
        # one step to the one before: the pass that learns comes afterwards.
        whole = condition.whole().detach()
        for step in self.steps:
            x, _ = step.encode(x.detach(), None if step.affine is None else step.affine.seeing(whole))

    def _each_sees(
        self, condition: Condition, samples: int, *, reverse: bool = False
    ) -> Iterator[tuple[FlowStep, Seen | None]]:
        made = self._of_condition(condition, reverse)
        for step in reversed(self.steps) if reverse else self.steps:
            yield step, None if step.affine is None else _seen(step.affine, *next(made), samples)

    def _of_condition(self, condition: Condition, reverse: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each step with maps: injector's and coupling's first layer of the condition, and the weight for what is kept."""
        affines = [step.affine for step in self.steps if step.affine is not None]
        if not affines:
            return
        learned = [weight for affine in affines for weight in affine.first_weights()]
        layers = self._first_layers.get(learned, lambda: FirstLayers.of(affines, condition))
        hidden = len(layers.bias) // (2 * len(affines))
        batch, _, height, width = condition.fine.shape
        at_once = max(1, AT_ONCE // (2 * hidden * batch * height * width))
        groups = [range(len(affines))[start : start + at_once] for start in range(0, len(affines), at_once)]
        for group in reversed(groups) if reverse else groups:
            made = layers.of_condition(condition, 2 * hidden * group[0], 2 * hidden * (group[-1] + 1)).split(hidden, dim=1)
            for place in reversed(group) if reverse else group:
                own = 2 * (place - group[0])
                yield made[own], made[own + 1], layers.kept[place]


def _seen(affine: ConditionalAffine, injected: Tensor, coupled: Tensor, weight: Tensor, samples: int) -> Seen:
    count = samples // len(injected)

    def injector() -> Maps:
        shift, scale = affine.fFeatures.rest(injected)
        return _repeated(shift, count), _repeated(scale, count)

    def coupling(kept: Tensor) -> Maps:
        return affine.fAffine.rest(F.conv2d(kept, weight, padding=1) + _repeated(coupled, count))

    return Seen(injector, coupling)


def _repeated(value: Tensor, count: int) -> Tensor:
    return value if count == 1 else value.repeat_interleave(count, dim=0)


class Inverted(torch.autograd.Function):
    """`Level.encode` that keeps its output alone, and rebuilds the input of each step from its output in the backward pass.

    Source: Gomez et al., "The Reversible Residual Network", NeurIPS 2017 (arXiv:1707.04585), section 3.2.
    """

    @staticmethod
    def forward(
        ctx: Any, level: Level, x: Tensor, fine: Tensor, coarse: Tensor | None, *_learned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `Level._encode` returns. The weights are given so that they get gradients."""
        z, log_density = level._encode(x, Condition(fine, coarse))
        ctx.level = level
        ctx.save_for_backward(z, fine, coarse)
        return z, log_density

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_density: Tensor) -> tuple[Tensor | None, ...]:
        """From the last step to the first."""
        z, *condition = ctx.saved_tensors
        of_condition: list[Tensor | None] = [None, None]
        of_weights: dict[Tensor, Tensor | None] = {}
        for step in reversed(ctx.level.steps):
            with torch.enable_grad():
                inputs = [
                    None if each is None else each.detach().requires_grad_(needed)
                    for each, needed in zip(condition, ctx.needs_input_grad[2:4], strict=True)
                ]
                assert inputs[0] is not None
                ((_, seen),) = Level([step])._each_sees(Condition(inputs[0], inputs[1]), len(z))
            with torch.no_grad():
                x = step.decode(z, seen)
            with torch.enable_grad():
                x.requires_grad_()
                again, log_density = step.encode(x, seen)
                log_density = log_density + linear_log_density([step], x.shape[2] * x.shape[3])
            weights = [weight for weight in step.parameters() if weight.requires_grad]
            differentiable = [each for each in inputs if each is not None and each.requires_grad]
            gradients = iter(
                torch.autograd.grad(
                    (again, log_density), (x, *differentiable, *weights), (grad_z, grad_density), allow_unused=True
                )
            )
            z, grad_z = x.detach(), next(gradients)
            for place, each in enumerate(inputs):
                if each is not None and each.requires_grad:
                    of_condition[place] = _sum(of_condition[place], next(gradients))
            of_weights |= dict(zip(weights, gradients, strict=True))
        return None, grad_z, *of_condition, *(of_weights[weight] for weight in ctx.level.learned())


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
