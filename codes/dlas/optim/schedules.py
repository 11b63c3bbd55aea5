"""Applies learning-rate schedules to optimisers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from dlas.errors import ConfigurationError
from dlas.optim.closed_forms import CyclicTradeoff, LearningRate, Plateau, warmup_factor
from dlas.optim.signatures import check_keywords, keyword_parameters
from dlas.registry import SCHEDULES, nearest

_TORCH_CLASSES = {
    name: value
    for name, value in vars(torch.optim.lr_scheduler).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.lr_scheduler.LRScheduler)
    and not name.startswith("_")
    and name != "LRScheduler"
}
# What these are made of (functions, other schedulers, a validation metric) cannot be written in a configuration file.
_NOT_BY_NAME = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"}


class Schedule:
    """Sets the learning rates of an optimiser's groups."""

    def apply(self, step: int) -> None:
        """Sets the learning rates for the next update.

        Args:
            step: number of completed steps: 0 before the first update.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty for a schedule that is a function of the step."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        raise NotImplementedError

    def is_trough(self, step: int) -> bool:
        """Whether a cycle ends with completed step number `step`, where the weights are worth a validation."""
        del step
        return False

    def observe(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Takes the figures of a validation, by set; most schedules do not care."""


class ClosedFormSchedule(Schedule):
    """A schedule that is a function of the step and of each group's `initial_lr`, or of validations (`Plateau`).

    Args:
        learning_rate: the function.
        optimizer: its groups have the entry `initial_lr`.
        warmup_iter: the rate is multiplied by ``min(1, (step + 1) / warmup_iter)``; 0 and below are off.
    """

    def __init__(self, learning_rate: LearningRate, optimizer: Optimizer, warmup_iter: int) -> None:
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.warmup_iter = warmup_iter

    def apply(self, step: int) -> None:
        factor = warmup_factor(step, self.warmup_iter)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.learning_rate(step, group["initial_lr"])

    def state_dict(self) -> dict[str, Any]:
        return self.learning_rate.state_dict() if isinstance(self.learning_rate, Plateau) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.learning_rate, Plateau):
            self.learning_rate.load_state_dict(state)

    def is_trough(self, step: int) -> bool:
        return isinstance(self.learning_rate, CyclicTradeoff) and self.learning_rate.is_trough(step)

    def observe(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        if isinstance(self.learning_rate, Plateau):
            self.learning_rate.observe(figures)


class TorchSchedule(Schedule):
    """A scheduler of torch, stepped once per completed step. A resume steps it again from the start, so edits of the file hold.

    Args:
        scheduler: the scheduler.
        warmup_iter: the rate is multiplied by ``min(1, (step + 1) / warmup_iter)``; 0 and below are off.
    """

    def __init__(self, scheduler: torch.optim.lr_scheduler.LRScheduler, warmup_iter: int) -> None:
        self.scheduler = scheduler
        self.warmup_iter = warmup_iter

    def apply(self, step: int) -> None:
        if step < self.scheduler.last_epoch:
            raise ValueError(
                f"{type(self.scheduler).__name__} is at step {self.scheduler.last_epoch} and cannot go back to {step}"
            )
        groups = self.scheduler.optimizer.param_groups
        # Recursive schedulers go on from the groups' rates, where warm-up has left its factor: first take it out again.
        for group, rate in zip(groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        behind = step - self.scheduler.last_epoch
        if behind == 1 and step > 1:
            self.scheduler.step()
        elif behind > 0:
            with warnings.catch_warnings():  # a resume makes up for the steps of earlier sittings before its first update
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                for _ in range(behind):
                    self.scheduler.step()
        factor = warmup_factor(step, self.warmup_iter)
        for group in groups:
            group["lr"] = factor * group["lr"]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def build_schedule(options: Mapping[str, Any], optimizer: Optimizer, niter: int, *, warmup_iter: int = -1) -> Schedule:
    """Builds the schedule of an optimiser.

    Nothing is changed before `apply`, except that some of torch's schedulers set the first rate when they are made.

    Args:
        options: `type`, a registered schedule or a class of `torch.optim.lr_scheduler`, and its options.
        optimizer: from `build_optimizer`: its groups have the entry `initial_lr`.
        niter: length of the run in steps: the value of an option `total_steps` that is not given.
        warmup_iter: linear warm-up over this many steps, on top of any schedule; 0 and below are off.

    Raises:
        ConfigurationError: the type or an option is not known, or a value is not allowed.
    """
    if "type" not in options:
        raise ConfigurationError(f"a learning-rate schedule needs 'type'; given: {', '.join(options) or 'nothing'}")
    name = options["type"]
    values = {key: value for key, value in options.items() if key != "type"}
    if name in SCHEDULES:
        if SCHEDULES.find(name).parameter("total_steps"):
            values.setdefault("total_steps", niter)
        return ClosedFormSchedule(SCHEDULES.create(name, values), optimizer, warmup_iter)
    if name in _NOT_BY_NAME:
        raise ConfigurationError(f"schedule '{name}' of torch cannot be configured in a file; known: {', '.join(_known())}")
    if name not in _TORCH_CLASSES:
        close = nearest(name, _known())
        hint = f"did you mean '{close}'?" if close else f"known: {', '.join(_known())}"
        raise ConfigurationError(f"no schedule is called '{name}'; {hint}")
    cls = _TORCH_CLASSES[name]
    check_keywords(f"schedule '{name}'", cls, values)
    if "total_steps" in keyword_parameters(cls) and "epochs" not in values:
        values.setdefault("total_steps", niter)
    try:
        return TorchSchedule(cls(optimizer, **values), warmup_iter)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"schedule '{name}': {error}; given: {values}") from error


def _known() -> list[str]:
    return [*SCHEDULES.entries(), *(name for name in _TORCH_CLASSES if name not in _NOT_BY_NAME)]
