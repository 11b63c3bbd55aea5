"""Optimisers, parameter groups and learning-rate schedules. torch is imported when a name below is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlas.optim.optimizers import build_optimizer
    from dlas.optim.schedules import Schedule, build_schedule

__all__ = ["Schedule", "build_optimizer", "build_schedule"]

_HOMES = {"build_optimizer": "optimizers", "Schedule": "schedules", "build_schedule": "schedules"}


def __getattr__(name: str) -> Any:
    # The closed forms of the schedules are plain arithmetic: `dlas explain` draws them without torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"dlas.optim.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
