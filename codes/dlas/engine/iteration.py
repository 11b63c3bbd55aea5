"""One iteration: every step of the file on one batch, then the averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from dlas.context import Context
from dlas.engine.averages import Averages
from dlas.engine.cutting import Cutting
from dlas.engine.distributed import Single, Strategy
from dlas.engine.first_batch import FirstBatch
from dlas.engine.flops import Work
from dlas.engine.freezing import Freeze
from dlas.engine.health import HealthMonitor
from dlas.engine.microbatch import MicroBatch
from dlas.engine.out_of_memory import StepOutOfMemoryError, explained, release_memory
from dlas.engine.stage import STAGE
from dlas.engine.step import TrainingStep
from dlas.engine.transfer import Transfer
from dlas.engine.waiting import waiting_told

TRANSFER_FIX = (
    "Before any step has begun, networks, averages and optimiser states fill the device, or another process does: lower "
    "datasets.train.batch_size, take a smaller network or an optimiser with less state, or free the device"
)
StepErrorHandler: TypeAlias = Callable[[TrainingStep, list[MicroBatch], list[Context], Exception], None]


class IterationRunner:
    """Runs iterations; knows nothing of data sets, logs or files.

    Args:
        steps: in the order of the file.
        networks: all networks of the run.
        averages: of the weights, to update; none by default.
        seed: of the run.
        cutting: how batches are cut into micro-batches; an automatic one is changed when memory runs out.
        device: where everything runs.
        layout: memory format of images.
        health: watches the steps' updates.
        strategy: how the run is spread over processes; a single one by default.
        on_error: told of an error that a step raises, with its micro-batches as they were before it.
        freezes: parameters that are not trained for part of the run.
        work: counts arithmetic, if that is asked for.
        waiting: what becomes of an operation in a step, or in the averages, that lets the loop wait for a CUDA device.
    """

    def __init__(
        self,
        steps: Sequence[TrainingStep],
        networks: Mapping[str, nn.Module],
        averages: Averages | None,
        *,
        seed: int,
        cutting: Cutting,
        device: torch.device,
        layout: torch.memory_format,
        health: HealthMonitor | None = None,
        strategy: Strategy | None = None,
        on_error: StepErrorHandler | None = None,
        freezes: Sequence[Freeze] = (),
        work: Work | None = None,
        waiting: Literal["warn", "error"] | None = None,
    ) -> None:
        self.steps = steps
        self.networks = networks
        self.averages = averages
        self.seed = seed
        self.cutting = cutting
        self.device = device
        self.transfer = Transfer(device, layout)
        self.health = health
        self.strategy = strategy or Single()
        self.on_error = on_error
        self.freezes = freezes
        self.work = work
        self.waiting = waiting if device.type == "cuda" else None
        self.first_batch = FirstBatch(networks)
        trained = [networks[name] for step in steps for name in step.trained]
        self._changing = [*trained, *(each.loss for step in steps for each in step.losses)]  # modules whose buffers may
        self._focus: tuple[frozenset[str], list[Freeze]] | None = None

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
        with explained(f"moving a batch of {len(positions)} samples to {self.device}", TRANSFER_FIX):
            batch = self.transfer(batch)
        parts = self.cutting.cut(batch, positions)
        waiting = self.first_batch.waiting(self.networks)
        health = self.health
        if health is not None:
            health.begin()
        for step in self.steps:
            if not step.runs(completed) or (health is not None and health.holds(step, completed)):
                continue
            self._focus_on(step, completed)
            parts = self._run_step(step, parts, completed, log_gradients)
            if step.updates(completed):
                self._tell_updated(step.trained)
        if self.strategy.ranks.many:
            STAGE.enter("collective")
        self.strategy.share_buffers(self._changing)
        if self.averages is not None:
            STAGE.enter("averages")
            with waiting_told(self.waiting):
                self.averages.update(completed + 1, lambda name: health.held(name) if health is not None else False)
            self.first_batch.restart(self.averages, waiting)
        STAGE.enter("other")
        if health is not None:
            health.finish(completed)
        return parts

    def _run_step(self, step: TrainingStep, parts: list[MicroBatch], completed: int, log_gradients: bool) -> list[MicroBatch]:
        """Runs a step, on smaller and smaller micro-batches if that may be, and returns those that went through."""
        averages = self.averages.main if self.averages is not None else {}
        while True:
            contexts = [
                Context(self.networks, step.trained, completed, True, self.seed, part.positions, averages) for part in parts
            ]
            before = [MicroBatch(dict(part.state), part.share, part.positions) for part in parts]
            try:
                with self.health.watching(step, parts, contexts) if self.health is not None else nullcontext():
                    self.first_batch.show(step, parts, contexts)
                    counting = self.work.of(step, parts, completed) if self.work is not None else nullcontext()
                    with counting, waiting_told(self.waiting):
                        step.run(parts, contexts, log_gradients)
                return parts
            except StepOutOfMemoryError as error:
                if self.health is None or not self.cutting.automatic:
                    raise
                shortage = error.with_traceback(None)
            except Exception as error:
                if self.on_error is not None:
                    self.on_error(step, before, contexts, error)
                raise
            self.health.buffers.bring_back()
            parts = self.cutting.halve(parts, shortage, completed)
            release_memory(self.device)

    def _tell_updated(self, names: Iterable[str]) -> None:
        """Networks that keep something in step with their own weights bring it up to date."""
        for name in names:
            after_update = getattr(self.networks[name], "after_update", None)
            if after_update is not None:
                after_update()

    def _focus_on(self, step: TrainingStep, completed: int) -> None:
        """Gradients are recorded only for what the step trains in this iteration; the rest is passed through."""
        focus = frozenset(step.trained), [each for each in self.freezes if each.gate(completed)]
        if focus == self._focus:
            return
        for each in self.steps:
            trains = each is step
            for parameter in each.parameters:
                parameter.requires_grad_(trains)
        for freeze in focus[1]:
            for parameter in freeze.parameters:
                parameter.requires_grad_(False)
        self._focus = focus
