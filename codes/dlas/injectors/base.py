"""What an injector is: something that reads state keys and gives new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from dlas.context import Context

State = Mapping[str, Any]


class Injector:
    """Reads entries of the state and returns the entries it adds.

    Which keys those are is declared in the constructor's signature by the annotations `StateIn(s)` and `StateOut(s)` of
    `dlas.types`. The gates (`after`, `before`, `every`, `train`, `eval`, `no_grad`) belong to the step, not to the injector.

    Attributes:
        derived_outputs: further keys that are written, as templates over option names: with ``("{out}_top_left",)`` the option
            ``out: patch`` also writes ``patch_top_left``. A literal tuple of strings, for the checker reads the source text.
        detaches: True (as a literal) where no gradient flows from what is written to what is read.
        brings_together: True (as a literal) where processes wait for one another in it: what they have is brought together.
        averages: options and values (as a literal) with which it calls a network with its averaged weights in training; ():
            it always does.
    """

    derived_outputs: ClassVar[tuple[str, ...]] = ()
    brings_together: ClassVar[bool] = False
    detaches: ClassVar[bool] = False
    averages: ClassVar[tuple[tuple[str, Any], ...] | None] = None

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        """Returns the new entries; must not change `state`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers from iteration to iteration, for a checkpoint: most remember nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state_dict` gave, on any device; empty: begins anew."""


def read_inputs(spec: Any, state: State) -> list[Any]:
    """Positional arguments for a network from an `in:` entry.

    A string reads that key, the string ``None`` stands for Python's None, other literals pass through, lists nest.
    """
    return [_read(item, state) for item in spec] if isinstance(spec, list | tuple) else [_read(spec, state)]


def _read(item: Any, state: State) -> Any:
    if isinstance(item, list | tuple):
        return [_read(each, state) for each in item]
    if isinstance(item, str):
        return None if item == "None" else state[item]
    return item


def name_outputs(names: str | list[str], result: Any) -> dict[str, Tensor]:
    """Gives a network's result the names of an `out:` entry; a list of names takes a tuple's leading entries."""
    if isinstance(names, str):
        return {names: result}
    if not isinstance(result, list | tuple):
        raise ValueError(f"out: {names} expects {len(names)} results, but the network returned one {type(result).__name__}")
    if len(result) < len(names):
        raise ValueError(f"out: {names} expects {len(names)} results, but the network returned {len(result)}")
    return dict(zip(names, result, strict=False))
