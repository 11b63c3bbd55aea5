"""Which updates of a run were bad: found on the device, learnt of by the host a fixed number of iterations later."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlas.config.schema import HealthConfig
from dlas.context import Context
from dlas.engine.distributed import Ranks
from dlas.engine.distributed.tensors import local
from dlas.engine.health.buffers import BufferKeeper
from dlas.engine.health.guard import GOOD, GRADIENT, LOSS, SPIKE, UpdateGuard
from dlas.engine.health.policy import DONE, WORDS, Decision, Kind, StepHealth
from dlas.engine.health.spikes import SpikeScore
from dlas.engine.meter import Meter, Value
from dlas.engine.microbatch import MicroBatch
from dlas.observe.console import LOGGER

if TYPE_CHECKING:
    from dlas.engine.step import TrainingStep

MOST_TOLD = 5
"""Skipped updates that get a line each; the others are only counted."""
_KINDS: dict[int, Kind] = {LOSS: "loss", GRADIENT: "gradient", SPIKE: "spike"}


@dataclass
class BadUpdate:
    """A bad update. Weights, buffers and optimisers are as they were when its step began.

    Args:
        step: the step.
        iteration: number of completed iterations when it ran.
        kind: what was bad.
        parts: its micro-batches, with the state entries that were there before the step ran.
        contexts: their contexts.
        values: what the step measured: the mean of each of its figures over the micro-batches.
    """

    step: TrainingStep
    iteration: int
    kind: Kind
    parts: list[MicroBatch]
    contexts: list[Context]
    values: dict[str, float]

    def describe(self) -> str:
        """In words: where, what, and the figures that show it."""
        bad = {k: v for k, v in self.values.items() if not math.isfinite(v)}
        figures = ", ".join(f"{name} {value:g}" for name, value in (bad or self.values).items())
        return f"step '{self.step.name}', iteration {self.iteration + 1}: {WORDS[self.kind]} ({figures})"


@dataclass
class _Watched:
    step: TrainingStep
    parts: list[MicroBatch]
    contexts: list[Context]
    code: Tensor | int | None
    values: list[Value]


@dataclass
class _Record:
    """An iteration of which the host does not know yet how it went."""

    iteration: int
    watched: list[_Watched]
    codes: list[int] | Tensor
    ready: torch.cuda.Event | None = None

    def read(self) -> list[int]:
        if self.ready is not None:
            self.ready.synchronize()
        return [int(code) for code in (self.codes.tolist() if isinstance(self.codes, Tensor) else self.codes)]


class HealthMonitor:
    """Watches the updates of a run's steps, holds back bad ones and those that follow, and tells of them.

    With a lag of 0 (a CPU) the host reads each verdict at once; the rest of a bad iteration's steps does not run. With a lag of
    1 (a GPU) it reads them one iteration later, when they are there already, so that it never waits for the device; until then
    a latch on the device holds every further update. Weights, optimiser states, buffers and averages are the same either way:
    as they were when the bad step began.

    Args:
        steps: all steps of the run; their updates go through a guard from now on.
        settings: of each step, by name.
        networks: all networks of the run.
        meter: takes the figures of good updates.
        device: where everything runs.
        lag: iterations after which the host looks; by default 1 on a GPU, else 0.
        apart: weights are cut up among the ranks, or on other devices; the lag is 0 then, since such updates cannot be held on
            the device.
        ranks: the processes that must agree; by default all.
    """

    def __init__(
        self,
        steps: Sequence[TrainingStep],
        settings: Mapping[str, HealthConfig],
        networks: Mapping[str, nn.Module],
        meter: Meter,
        device: torch.device,
        *,
        lag: int | None = None,
        apart: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.steps = {step.name: step for step in steps}
        self.settings = settings
        self.networks = networks
        self.meter = meter
        self.device = device
        self.lag = int(device.type == "cuda" and not apart) if lag is None else lag
        self.history = {name: StepHealth() for name in self.steps}
        self.buffers = BufferKeeper([*networks.values(), *(each.loss for step in steps for each in step.losses)])
        self.latch = torch.zeros((), device=device) if self.lag else None
        self._pending: deque[_Record] = deque()
        self._watched: list[_Watched] = []
        self._held: dict[str, Tensor | bool] = {}  # by network, in this iteration
        self._at_start: Tensor | bool = False
        self._bad: BadUpdate | None = None
        self._told = 0
        self.ranks = ranks or Ranks.current()
        for step in steps:
            spikes = _spike_score(settings[step.name], device)
            step.guard = UpdateGuard(step.optimizer, step.scaler, spikes, self.latch, self.ranks, device)

    # ------------------------------------------------------------------------------------------------------ in an iteration

    def begin(self) -> None:
        """An iteration begins."""
        self._watched = []
        self._held = {}
        self._at_start = False if self.latch is None else self.latch.clone()

    def holds(self, step: TrainingStep, iteration: int) -> bool:
        """Whether the step need not run, since an earlier one of this iteration was bad: it could not count."""
        if self._bad is None or self._bad.iteration != iteration or self.latch is not None:
            return False
        self.history[step.name].skipped += step.updates(iteration)
        self._held.update(dict.fromkeys(step.trained, True))
        return True

    @contextmanager
    def watching(self, step: TrainingStep, parts: list[MicroBatch], contexts: list[Context]) -> Iterator[None]:
        """Runs a step within it."""
        guard = step.guard
        assert guard is not None
        given = [MicroBatch(dict(part.state), part.share, part.positions) for part in parts]
        guard.begin(",".join(each.name for each in step.losses if each.gate(contexts[0].step)))
        self.buffers.keep()
        yield
        if isinstance(guard.held, Tensor):
            self.buffers.bring_back(guard.held)
        elif guard.held:
            self.buffers.bring_back()
        self._held.update(dict.fromkeys(step.trained, guard.held))
        watched = _Watched(step, given, contexts, guard.code, self.meter.take())
        if isinstance(guard.code, int):
            self._look(contexts[0].step, [watched], [guard.code])
        elif guard.code is None and self.latch is None:
            self.meter.accept(watched.values)
        else:
            self._watched.append(watched)

    def held(self, network: str) -> Tensor | bool:
        """Whether the average of a network must stay as it is after this iteration; a number on the device with a lag."""
        return self._held.get(network, self._at_start)

    def finish(self, iteration: int) -> None:
        """All of an iteration is under way: looks at the one `lag` iterations ago."""
        if self.latch is None:
            return
        good = torch.zeros((), device=self.device)
        codes = torch.stack([good if w.code is None else torch.as_tensor(w.code) for w in self._watched] or [good])
        ready = None
        if self.device.type == "cuda":
            codes = torch.empty(codes.shape, pin_memory=True).copy_(codes, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending.append(_Record(iteration, self._watched, codes, ready))
        self._look_back(self.lag)

    # ---------------------------------------------------------------------------------------------------- after an iteration

    def bad_update(self, wait: bool = False) -> BadUpdate | None:
        """The bad update that is known of, if there is one.

        Whoever asks acts on it and then calls `go_on`; until then, with a lag, every update is held.

        Args:
            wait: look at every iteration that was run, and wait for the device where it must be.
        """
        if wait:
            self._look_back(0)
        return self._bad

    def decide(self, bad: BadUpdate, rollbacks: int) -> Decision:
        """What follows, by the policy and limits of the step. Counts it, and sets the learning rate's factor.

        Args:
            bad: from `bad_update`.
            rollbacks: of the run so far.
        """
        name = bad.step.name
        trained = [key for step in self.steps.values() for key in step.trained]
        finite = {key: all(local(p).isfinite().all() for p in self.networks[key].parameters()) for key in trained}
        spoilt = [key for key in trained if self.ranks.any(not finite[key])]
        return self.history[name].decide(bad.kind, self.settings[name], spoilt, rollbacks)

    def tell(self, bad: BadUpdate, decision: Decision, more: str = "") -> None:
        """Logs a bad update and what follows; the first few that are skipped, and all from which more follows."""
        self._told += 1
        words = f"{bad.describe()}: {DONE[decision.action]} ({decision.why}){more and f'; {more}'}"
        if decision.action != "skip" or self._told < MOST_TOLD:
            LOGGER.warning("%s", words)
        elif self._told == MOST_TOLD:
            LOGGER.warning("%s. Further ones are counted as '<step>/skipped' only", words)

    def summary(self) -> list[str]:
        """A line for each step that had bad updates in the run."""
        lines = []
        for name, health in self.history.items():
            if health.total:
                end = f"; the last {health.consecutive} up to the end, without a good one" if health.consecutive else ""
                lines.append(f"step '{name}': {health.total} bad updates in the run{end}")
        return lines

    def go_on(self) -> None:
        """The bad update is dealt with: updates are made again."""
        self._bad = None
        if self.latch is not None:
            self.latch.zero_()
        for name, health in self.history.items():
            self.steps[name].lr_factor = health.lr_factor

    def window(self) -> dict[str, float]:
        """What a log line shows, since the last one: updates skipped, largest score."""
        values = {}
        for name, health in self.history.items():
            if health.skipped:
                values[f"{name}/skipped"] = float(health.skipped)
                health.skipped = 0
            guard = self.steps[name].guard
            if guard is not None and guard.spikes is not None:
                values[f"{name}/spike_score"] = guard.spikes.read_worst()
        return values

    def state_dict(self, step: str) -> dict[str, Any]:
        """What a restart needs of a step."""
        guard = self.steps[step].guard
        assert guard is not None
        spikes = guard.spikes.state_dict() if guard.spikes is not None else None
        return {**self.history[step].state_dict(), "spikes": spikes}

    def load_state_dict(self, step: str, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`; an empty one is a new beginning."""
        guard = self.steps[step].guard
        assert guard is not None
        self.history[step] = StepHealth(**{key: value for key, value in state.items() if key != "spikes"})
        self.steps[step].lr_factor = self.history[step].lr_factor
        if guard.spikes is not None:
            guard.spikes.load_state_dict(state.get("spikes") or {"windows": {}, "worst": torch.zeros(())})

    def _look_back(self, lag: int) -> None:
        while len(self._pending) > lag:
            record = self._pending.popleft()
            self._look(record.iteration, record.watched, record.read())

    def _look(self, iteration: int, watched: list[_Watched], codes: list[int]) -> None:
        for number, (each, code) in enumerate(zip(watched, codes, strict=True)):
            if self._bad is not None and self.latch is not None:  # nobody has acted on it, so all that follows is held
                self._discard(watched[number:])
                return
            if code == GOOD:
                self.meter.accept(each.values)
                if each.code is not None:
                    self.history[each.step.name].updated()
                    self._settle(each)
                continue
            values = self.meter.means(each.values)
            self._bad = BadUpdate(each.step, iteration, _KINDS[code], each.parts, each.contexts, values)
            # Whatever came after it was held.
            self._discard([*watched[number:], *(later for record in self._pending for later in record.watched)])
            self._pending.clear()
            return

    def _settle(self, watched: _Watched) -> None:
        if self.latch is not None and watched.step.guard is not None:
            watched.step.guard.holder.settle()

    def _discard(self, held: list[_Watched]) -> None:
        for one in reversed(held):
            if one.code is not None:
                self.history[one.step.name].skipped += 1
                if self.latch is not None and one.step.guard is not None:
                    one.step.guard.holder.undo()


def _spike_score(settings: HealthConfig, device: torch.device) -> SpikeScore | None:
    if settings.spike == "off":
        return None
    return SpikeScore(
        settings.spike_threshold,
        settings.spike_window,
        loss=settings.spike_watch in ("loss", "both"),
        gradient=settings.spike_watch in ("gradient", "both"),
        device=device,
    )
