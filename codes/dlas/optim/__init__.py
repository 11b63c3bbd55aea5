"""Optimisers, parameter groups and learning-rate schedules."""

from __future__ import annotations

from dlas.optim.optimizers import build_optimizer
from dlas.optim.schedules import Schedule, build_schedule

__all__ = ["Schedule", "build_optimizer", "build_schedule"]
