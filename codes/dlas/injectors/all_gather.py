"""The whole batch in every process."""

from __future__ import annotations

from typing import Any

from dlas.context import Context
from dlas.injectors.base import Injector, State
from dlas.ranks import gather_with_gradient
from dlas.registry import INJECTORS
from dlas.types import StateIn, StateOut


@INJECTORS.register("all_gather")
class AllGatherInjector(Injector):
    """The samples of all processes, those of the first one first: for losses that compare the samples of a batch.

    Gradients flow back to the process that a sample came from, so a contrastive loss trains as it would on the whole batch in
    one process. In one process nothing changes. Micro-batches are not brought together.

    Args:
        in_: a tensor, (B, ...); B may be another number in each process.
        out: the samples of all of them, (sum of B, ...).
    """

    brings_together = True

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.input = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: gather_with_gradient(state[self.input])}
