"""A loss that a network or an injector has computed already."""

from __future__ import annotations

from torch import Tensor

from dlas.context import Context
from dlas.losses.base import Loss, State
from dlas.registry import LOSSES
from dlas.types import NonNegativeInt, StateIn


@LOSSES.register("direct")
class DirectLoss(Loss):
    """Mean of a state entry, in float32.

    Args:
        key: the entry, a tensor of any shape.
        inverted: minimise its negative, that is, maximise the entry.
        annealing_termination_step: number of steps over which the loss grows from 0 to full size; 0 for full size at once.
    """

    def __init__(self, *, key: StateIn, inverted: bool = False, annealing_termination_step: NonNegativeInt = 0) -> None:
        super().__init__()
        self.key = key
        self.sign = -1.0 if inverted else 1.0
        self.annealing_termination_step = annealing_termination_step

    def forward(self, state: State, context: Context) -> Tensor:
        value = state[self.key]
        if not isinstance(value, Tensor):
            raise ValueError(f"direct: the entry '{self.key}' must be a tensor, not a {type(value).__name__}")
        loss = self.sign * value.float().mean()
        if self.annealing_termination_step == 0:
            return loss
        return loss * (min(context.step, self.annealing_termination_step) / self.annealing_termination_step)
