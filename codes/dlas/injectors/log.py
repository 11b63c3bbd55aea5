"""Figures that the log shows beside losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dlas.context import Context
from dlas.errors import TrainingError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS
from dlas.types import StateIns


@INJECTORS.register("log")
class LogInjector(Injector):
    """Shows means of entries, under their names, in the log, in metrics.jsonl and in TensorBoard: a codebook's perplexity.

    Args:
        in_: an entry, or a list of them: tensors of any shape.
    """

    def __init__(self, *, in_: StateIns) -> None:
        self.keys = in_ if isinstance(in_, list) else [in_]

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        for key in self.keys:
            value = state[key]
            if not isinstance(value, Tensor):
                raise TrainingError(f"log: the entry '{key}' must be a tensor, not a {type(value).__name__}")
            context.log(key, value.detach().float().mean(), 1.0)
        return {}
