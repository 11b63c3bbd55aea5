"""The trainer's step, watched: what fails in it is noted with its place in the file, and the rest goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from dlas.config.schema import InjectorConfig, LossConfig, StepConfig
from dlas.context import Context
from dlas.engine.dryrun.building import DEVICE, FakePrecision, outputs
from dlas.engine.dryrun.problems import ProblemList, SkippedError, describe
from dlas.engine.dryrun.tracker import Tracker
from dlas.engine.meter import Meter
from dlas.engine.microbatch import MicroBatch
from dlas.engine.step import GatedInjector, GatedLoss, State, TrainingStep
from dlas.losses.base import Loss, LossResult
from dlas.optim.schedules import Schedule


class Stage:
    """What the parts of an iteration share: where problems go, who wrote what, and what could not be written."""

    def __init__(self, problems: ProblemList) -> None:
        self.problems = problems
        self.never_written: set[str] = set()
        self.unwritten: set[str] = set()
        self.writers: dict[str, str] = {}
        self.tracker = Tracker()

    def begin(self, tracker: Tracker, batch: Mapping[str, Any]) -> None:
        """A new iteration."""
        self.tracker = tracker
        self.writers = {}
        self.unwritten = self.never_written - batch.keys()


class _WatchedState(State):
    """Remembers what is read, and stops who reads what could not be written."""

    def __init__(self, state: Mapping[str, Any], unwritten: set[str]) -> None:
        super().__init__(state)
        self.read: dict[str, Any] = {}
        self._unwritten = unwritten

    def __getitem__(self, key: str) -> Any:
        if key in self._unwritten and key not in self:
            raise SkippedError(key)
        value = super().__getitem__(key)
        self.read[key] = value
        return value


class _WatchedInjector(GatedInjector):
    """An injector whose failure is noted and does not end the step."""

    def __init__(self, injector: GatedInjector, section: InjectorConfig, stage: Stage) -> None:
        super().__init__(*(getattr(injector, each.name) for each in dataclasses.fields(GatedInjector)))
        self.section = section
        self.stage = stage

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        watched = _WatchedState(state, self.stage.unwritten)
        new: dict[str, Any] = {}
        with self.stage.problems.noting(self.section, watched.read) as attempt:
            new = super().__call__(watched, context)
        if not attempt.succeeded:
            self.stage.unwritten |= outputs(self.section)
        for key in new:
            self.stage.writers[key] = self.section.yaml_path
        return new


class _WatchedLoss(Loss):
    """A loss whose failure is noted and does not end the step: zero takes its place."""

    def __init__(self, loss: Loss, section: LossConfig, stage: Stage, zero: Callable[[], Tensor]) -> None:
        super().__init__()
        self.loss = loss
        self.section = section
        self.stage = stage
        self.zero = zero

    def forward(self, state: Mapping[str, Any], context: Context) -> LossResult:
        """The loss, or zero."""
        watched = _WatchedState(state, self.stage.unwritten)
        with self.stage.problems.noting(self.section, watched.read) as attempt:
            result: LossResult = self.loss(watched, context)
            value = result[0] if isinstance(result, tuple) else result
            if value.dim() != 0:
                raise ValueError(f"a loss must be one number, but this one gives {describe(value)}; take its mean")
        return result if attempt.succeeded else self.zero()


class RehearsedStep(TrainingStep):
    """The trainer's step, with everything in it watched."""

    def __init__(
        self, name: str, config: StepConfig, networks: Mapping[str, nn.Module], precision: FakePrecision, stage: Stage
    ) -> None:
        super().__init__(name, config, networks, precision, DEVICE, _NoMeter())
        self.section = config
        self.stage = stage
        self.schedule = _ConstantRate()
        self.injectors = [
            _WatchedInjector(injector, section, stage)
            for injector, section in zip(self.injectors, config.injectors.values(), strict=True)
        ]
        for each in self.losses:
            each.loss.rehearse()
        self.losses = [
            GatedLoss(each.name, _WatchedLoss(each.loss, section, stage, self._zero), each.weight, each.gate)
            for each, section in zip(self.losses, config.losses.values(), strict=True)
        ]

    def run(self, parts: list[MicroBatch], contexts: list[Context], log_gradients: bool) -> None:
        """The step; what goes wrong outside its injectors and losses is noted for the step itself."""
        tracker = self.stage.tracker
        tracker.part = self.name
        hooks = [parameter.register_post_accumulate_grad_hook(_gradient_hook(tracker)) for parameter in self.parameters]
        with self.stage.problems.noting(self.section) as attempt:
            super().run(parts, contexts, log_gradients)
        if not attempt.succeeded:
            self.optimizer.zero_grad(set_to_none=True)
            written = {key for each in self.section.injectors.values() for key in outputs(each)}
            self.stage.unwritten |= {key for key in written if any(key not in part.state for part in parts)}
        for hook in hooks:
            hook.remove()
        tracker.part = ""

    def buffers(self) -> Iterator[Tensor]:
        """Tensors that the losses hold."""
        for each in self.losses:
            yield from each.loss.parameters()
            yield from each.loss.buffers()

    def _zero(self) -> Tensor:
        return self.parameters[0].sum() * 0


class _NoMeter(Meter):
    def add(self, name: str, value: Tensor, weight: float | Tensor = 1.0) -> None:
        """Nothing: values are not there."""


class _ConstantRate(Schedule):
    def apply(self, step: int) -> None:
        """Nothing: the rate's value changes no shape."""


def _gradient_hook(tracker: Tracker) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        tracker.hold([parameter.grad], "gradients")

    return hook
