"""One iteration: every step of the file on one batch, then the averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from dlas.context import Context
from dlas.engine.ema import ModelEma
from dlas.engine.health import HealthMonitor
from dlas.engine.microbatch import MicroBatch, split_batch, to_device
from dlas.engine.stage import STAGE
from dlas.engine.step import TrainingStep

StepErrorHandler: TypeAlias = Callable[[TrainingStep, list[MicroBatch], list[Context], Exception], None]


class IterationRunner:
    """Runs iterations; knows nothing of data sets, logs or files.

    Args:
        steps: in the order of the file.
        networks: all networks of the run.
        emas: averages to update.
        seed: of the run.
        parts: micro-batches per batch.
        device: where everything runs.
        layout: memory format of images.
        health: watches the steps' updates.
        on_error: told of an error that a step raises, with its micro-batches as they were before it.
    """

    def __init__(
        self,
        steps: Sequence[TrainingStep],
        networks: Mapping[str, nn.Module],
        emas: Mapping[str, ModelEma],
        *,
        seed: int,
        parts: int,
        device: torch.device,
        layout: torch.memory_format,
        health: HealthMonitor | None = None,
        on_error: StepErrorHandler | None = None,
    ) -> None:
        self.steps = steps
        self.networks = networks
        self.emas = emas
        self.seed = seed
        self.parts = parts
        self.device = device
        self.layout = layout
        self.health = health
        self.on_error = on_error
        self._focus: frozenset[str] | None = None

    def run(self, batch: dict[str, Any], completed: int, log_gradients: bool = False) -> list[MicroBatch]:
        """One iteration.

        Args:
            batch: from the loader: tensors by key, and `positions`, which is taken out.
            completed: number of completed iterations.
            log_gradients: also measure gradient norms (costs a pass over the gradients; nothing waits for the device).

        Returns:
            The micro-batches with everything that the steps wrote.
        """
        STAGE.enter("transfer")
        positions = batch.pop("positions")
        parts = split_batch(to_device(batch, self.device, self.layout), positions, self.parts)
        health = self.health
        if health is not None:
            health.begin()
        for step in self.steps:
            if not step.runs(completed) or (health is not None and health.holds(step, completed)):
                continue
            self._focus_on(step)
            contexts = [Context(self.networks, step.trained, completed, True, self.seed, part.positions) for part in parts]
            before = [MicroBatch(dict(part.state), part.share, part.positions) for part in parts]
            try:
                with health.watching(step, parts, contexts) if health is not None else nullcontext():
                    step.run(parts, contexts, log_gradients)
            except Exception as error:
                if self.on_error is not None:
                    self.on_error(step, before, contexts, error)
                raise
        for name, ema in self.emas.items():
            ema.update(completed + 1, health.held(name) if health is not None else False)
        if health is not None:
            health.finish(completed)
        return parts

    def _focus_on(self, step: TrainingStep) -> None:
        """Gradients are recorded only for the networks that the step trains; others are passed through."""
        focus = frozenset(step.trained)
        if focus == self._focus:
            return
        for each in self.steps:
            trains = each is step
            for parameter in each.parameters:
                parameter.requires_grad_(trains)
        self._focus = focus
