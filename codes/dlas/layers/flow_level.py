"""The steps of one level of a conditional flow, run together.

Most of a step's work is in the first convolutions of its two subnets, which see hundreds of channels of the condition and few
or none of what is mapped. Their part over the condition is done for both at once, and where the condition's channels are
nearest-neighbour enlargements of coarser ones, on the coarse ones: the result is the same but for rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dlas.layers.enlarged_conv import Nine, add_convolved, differences, weights_of
from dlas.layers.flow import ConditionalAffine, FlowStep, Maps, Seen, linear_log_density
from dlas.layers.kept import Kept

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


class FirstLayers(NamedTuple):
    """The first convolutions of a step's two subnets, the injector's and the coupling's, with their normalisations.

    Args:
        fine: (2 hidden, C, 3, 3), of `Condition.fine`.
        coarse: nine times (2 hidden, D), of `Condition.coarse`, as `dlas.layers.enlarged_conv` has them; or none.
        bias: (2 hidden,).
        kept: (hidden, kept, 3, 3), of the channels that the coupling keeps.
    """

    fine: Tensor
    coarse: Nine
    bias: Tensor
    kept: Tensor

    @staticmethod
    def of(affine: ConditionalAffine, condition: Condition) -> FirstLayers:
        """Those of these maps."""
        injector, injector_bias = affine.fFeatures.first.as_one()
        coupling, coupling_bias = affine.fAffine.first.as_one()
        weight = torch.cat((injector, coupling[:, affine.kept :]))
        bias, kept = torch.cat((injector_bias, coupling_bias)), coupling[:, : affine.kept]
        if condition.coarse is None:
            return FirstLayers(weight, (), bias, kept)
        fine, coarse = weight.split((condition.fine.shape[1], condition.coarse.shape[1]), dim=1)
        return FirstLayers(fine, weights_of(coarse), bias, kept)

    def of_condition(self, fine: Tensor, coarse: Nine) -> Tensor:
        """(B, 2 hidden, H, W): what they make of the condition, its coarse channels given as `differences`, or none."""
        made = F.conv2d(fine, self.fine, self.bias, padding=1)
        return add_convolved(made, coarse, self.coarse) if coarse else made


class Level:
    """Steps with as many channels and the same condition, one after the other.

    Args:
        steps: of a flow's module, to which they belong.
    """

    def __init__(self, steps: Sequence[FlowStep]) -> None:
        self.steps = list(steps)
        self._first_layers: list[Kept[FirstLayers]] = [Kept() for _ in self.steps]

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
        ahead = list(zip(self.steps, self._first_layers, strict=True))
        coarse: Nine = ()
        if condition.coarse is not None and any(step.affine is not None for step in self.steps):
            coarse = differences(condition.coarse)
        for step, kept in reversed(ahead) if reverse else ahead:
            if step.affine is None:
                yield step, None
            else:
                layers = kept.get(step.affine.first_weights(), functools.partial(FirstLayers.of, step.affine, condition))
                yield step, _seen(step.affine, layers, layers.of_condition(condition.fine, coarse), samples)


def _seen(affine: ConditionalAffine, layers: FirstLayers, of_condition: Tensor, samples: int) -> Seen:
    injected, coupled = of_condition.chunk(2, dim=1)
    count = samples // len(of_condition)

    def injector() -> Maps:
        shift, scale = affine.fFeatures.rest(injected)
        return _repeated(shift, count), _repeated(scale, count)

    def coupling(kept: Tensor) -> Maps:
        return affine.fAffine.rest(F.conv2d(kept, layers.kept, padding=1) + _repeated(coupled, count))

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
