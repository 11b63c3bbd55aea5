"""What a loss is: a module that reads state keys and gives a scalar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlas.context import Context

State = Mapping[str, Any]
LossResult = Tensor | tuple[Tensor, dict[str, Tensor]]
"""The scalar, or the scalar and named scalars to log beside it."""


class Loss(nn.Module):
    """A loss over the state. Weight and gates (`after`, `before`, `every`) belong to the step, not to the loss.

    Attributes:
        detaches: True (as a literal, for the checker reads the source text) where no gradient flows to the state keys that are
            read, only to the networks that the options name.
        second_order: names (as a literal) of options each of which asks for gradients of gradients; (): it always takes them.
    """

    detaches: ClassVar[bool] = False
    second_order: ClassVar[tuple[str, ...] | None] = None

    def prepare(self, device: torch.device) -> None:
        """Called once before the first step of a run in which the loss can be on: reads files that it needs."""

    def rehearse(self) -> None:
        """Called in place of `prepare` where a run is rehearsed on tensors without values: builds what the files would fill."""

    def forward(self, state: State, context: Context) -> LossResult:
        """Returns a scalar, averaged over the micro-batch, in float32."""
        raise NotImplementedError
