"""The search: which settings are measured, in which order, and which one is taken."""

from __future__ import annotations

import hashlib
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from dlas.config import Config, to_plain
from dlas.engine.compiling import CompilationError
from dlas.engine.device import choose_device
from dlas.engine.memory_advice import MARGIN, available_memory
from dlas.engine.tuning import measuring
from dlas.engine.tuning.measuring import Speed, forecast, heaviest_iteration
from dlas.engine.tuning.ratios import Ratio, paired
from dlas.engine.tuning.record import Record
from dlas.engine.tuning.settings import AXES, Axis, Setting, compile_settings, numeric_settings, worker_settings
from dlas.errors import TrainingError

_LOOKED_AT = 2  # rounds after which settings that are far behind are left alone
_FAR_BEHIND = 0.8  # of the fastest one's speed
_ALIKE = 0.97  # of the fastest one's speed: less memory is not worth more than that
_LONGEST = 200  # characters of a reason
_MOST = 64  # times the file's batch: larger micro-batches are not looked for

Measure = Callable[[Config, torch.device, float, int], Speed | None]


@dataclass(frozen=True)
class Plan:
    """How to search.

    Args:
        rounds: in each, every setting that is left is measured once, in an order of its own.
        seconds: of each measurement.
        vary: what may change.
        memory: bytes that tensors may take; by default 90 % of what the device or machine has.
        patience: seconds that compiling may take; what takes longer is not looked at further.
    """

    rounds: int = 8
    seconds: float = 2.0
    vary: Sequence[Axis] = AXES
    memory: int | None = None
    patience: float = 600.0


@dataclass
class Row:
    """A setting and what was found of it.

    Args:
        setting: the setting.
        speeds: samples per second by round.
        memory: bytes; measured on a GPU, by the forecast elsewhere; None where that is not known.
        fits: it fits into the memory.
        against: its speed over that of the stage's reference.
        start: most seconds that it took before it ran at this speed: of a compiled one, compiling.
        failure: why it cannot be run at all.
    """

    setting: Setting
    speeds: dict[int, float] = field(default_factory=dict)
    memory: int | None = None
    fits: bool = True
    against: Ratio | None = None
    start: float = 0.0
    failure: str = ""


@dataclass
class Stage:
    """Settings that were compared with each other.

    Args:
        title: what they differ in.
        rows: in the order in which they were thought of.
        reference: the one they are compared with: the file's own, or the first that fits.
        chosen: the fastest; of those that cannot be told from it, the one with the least memory.
        pareto: settings than which no other one is better in both speed and memory, by medians.
    """

    title: str
    rows: list[Row]
    reference: Row
    chosen: Row
    pareto: list[Row]


@dataclass
class Tuned:
    """What a search found.

    Args:
        stages: in the order in which they were done; the last one's choice is the result.
        largest: most samples of a micro-batch that fit with the file's own precision and memory format.
        bounded: a size was met that does not fit; else `largest` is only as far as was looked.
        memory: bytes that tensors may take; None if that is not known.
        by_trial: whether memory was measured; else it is a forecast.
        iteration: at which it was measured.
        own: the file's own setting.
    """

    stages: list[Stage]
    largest: int
    bounded: bool
    memory: int | None
    by_trial: bool
    iteration: int
    own: Setting

    @property
    def setting(self) -> Setting:
        """The result."""
        return self.stages[-1].chosen.setting


class _Search:
    def __init__(self, config: Config, plan: Plan, path: Path, say: Callable[[str], None], measure: Measure) -> None:
        self.config = config
        self.plan = plan
        self.say = say
        self.measure = measure
        self.device = choose_device(config.device)
        self.by_trial = self.device.type == "cuda"
        self.own = Setting.of(config, self.device)
        available = available_memory(self.device)
        self.memory = plan.memory or (int(MARGIN * available) if available else None)
        self.iteration = heaviest_iteration(config)
        self.record = Record(path, circumstances(config, self.device, plan))
        if self.record.stale:
            say(f"{path} holds measurements of another file, device or version; they are measured anew")
        elif self.record.count:
            say(f"{path}: going on after {self.record.count} measurements")

    def run(self) -> Tuned:
        batch_size = self.config.datasets["train"].batch_size
        largest, bounded = self._largest(batch_size)
        stages = [self._compare("numeric", numeric_settings(self.own, batch_size, self.device, self.plan.vary))]
        compiled = compile_settings(stages[0].chosen.setting, self.own, self.device, self.plan.vary)
        if len(compiled) > 1:
            stages.append(self._compare("compile", compiled))
        workers = worker_settings(stages[-1].chosen.setting, self.plan.vary)
        if len(workers) > 1:
            stages.append(self._compare("workers", workers))
        return Tuned(stages, largest, bounded, self.memory, self.by_trial, self.iteration, self.own)

    # ------------------------------------------------------------------------------------------------------------- memory

    def _largest(self, batch_size: int) -> tuple[int, bool]:
        """The largest micro-batch that fits, to an eighth, and whether one was met that does not."""
        known = self.record.stages.get("largest", {}).get(self.own.key)
        if known is not None:
            return known["size"], known["bounded"]
        low, high = 0, min(self.own.micro_batch, batch_size)
        while high <= _MOST * batch_size and self._fits_alone(high):
            low, high = high, 2 * high
        bounded = high <= _MOST * batch_size
        while bounded and high - low > max(1, low // 8):
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits_alone(middle) else (low, middle)
        self.record.stages["largest"] = {self.own.key: {"size": low, "bounded": bounded, "speeds": {}}}
        self.record.save()
        return low, bounded

    def _fits_alone(self, size: int) -> bool:
        """Whether a batch of `size` in one piece fits."""
        config = Setting(size, self.own.precision, self.own.memory_format, 0).applied(self.config, batch_size=size)
        if self.by_trial:
            speed = self.measure(config, self.device, 0.0, self.iteration)
            return speed is not None and not self._exceeds(speed.peak_bytes)
        return not self._exceeds(forecast(config))

    def _exceeds(self, count: int | None) -> bool:
        return count is not None and self.memory is not None and count > self.memory

    # ---------------------------------------------------------------------------------------------------------- measuring

    def _compare(self, stage: str, settings: list[Setting]) -> Stage:
        for setting in settings:
            known = self.record.of(stage, setting.key)
            if known.get("failure") and known["patience"] < self.plan.patience:
                known["fits"], known["failure"] = True, ""
            if not self.by_trial and known["memory"] is None:
                known["memory"] = forecast(setting.applied(self.config))
                known["fits"] = not self._exceeds(known["memory"])
        for number in range(self.plan.rounds):
            left = self._left(stage, settings) if number >= _LOOKED_AT else settings
            order = [each for each in left if self.record.of(stage, each.key)["fits"]]
            if number >= _LOOKED_AT and len(order) < 2:
                break  # there is nothing left to compare it with
            random.Random(number).shuffle(order)  # what is measured first or after what must not favour anything
            for place, setting in enumerate(order, start=1):
                self._measure_once(stage, setting, number, f"{stage} {number + 1}/{self.plan.rounds}, {place}/{len(order)}")
        return self._settle(stage, settings)

    def _measure_once(self, stage: str, setting: Setting, number: int, words: str) -> None:
        known = self.record.of(stage, setting.key)
        if str(number) in known["speeds"] or not known["fits"]:
            return
        if setting.compiled and not known["speeds"]:
            self.say(f"{words}: {setting.key} is compiled, for {self.plan.patience:g} s at most")
        try:
            speed = self.measure(setting.applied(self.config), self.device, self.plan.seconds, self.iteration)
        except Exception as error:
            if not setting.compiled or stage != "compile":
                raise
            known["fits"], known["failure"], known["patience"] = False, _in_a_line(error), self.plan.patience
            self.say(f"{words}: {setting.key} does not compile: {known['failure']}")
            self.record.save()
            return
        if speed is None or self._exceeds(speed.peak_bytes):
            known["fits"] = False
            self.say(f"{words}: {setting.key} does not fit")
        else:
            known["speeds"][str(number)] = speed.samples_per_second
            known["start"] = max(known.get("start", 0.0), speed.start)
            if speed.peak_bytes is not None:
                known["memory"] = max(known["memory"] or 0, speed.peak_bytes)
            self.say(f"{words}: {setting.key} {speed.samples_per_second:.4g} samples/s")
        self.record.save()

    def _left(self, stage: str, settings: list[Setting]) -> list[Setting]:
        """Settings that were not far behind the fastest in every one of the first rounds; the first one always stays."""

        def early(setting: Setting) -> dict[int, float]:
            return {n: s for n, s in self.record.speeds(stage, setting.key).items() if n < _LOOKED_AT}

        best = {n: max(early(each).get(n, 0.0) for each in settings) for n in range(_LOOKED_AT)}
        return [
            each
            for number, each in enumerate(settings)
            if number == 0 or any(speed >= _FAR_BEHIND * best[n] for n, speed in early(each).items())
        ]

    # ----------------------------------------------------------------------------------------------------------- choosing

    def _settle(self, stage: str, settings: list[Setting]) -> Stage:
        rows = []
        for setting in settings:
            known = self.record.of(stage, setting.key)
            rows.append(Row(setting, self.record.speeds(stage, setting.key), known["memory"], known["fits"]))
            rows[-1].start, rows[-1].failure = known.get("start", 0.0), known.get("failure", "")
        measured = [row for row in rows if row.speeds and row.fits]
        if not measured:
            raise TrainingError(
                "no setting fits into memory, not even one sample at a time: make the samples smaller, set "
                "checkpointing_enabled: true (for networks that offer it) or take a smaller network"
            )
        for row in measured:
            row.against = paired(row.speeds, measured[0].speeds)
        chosen = self._worth_compiling(measured) if stage == "compile" else choose(measured)
        return Stage(stage, rows, measured[0], chosen, pareto(measured))

    def _worth_compiling(self, measured: list[Row]) -> Row:
        """The fastest compiled one, if it is faster for certain and saves more time over the run than compiling takes."""
        eager, compiled = measured[0], measured[1:]
        if eager.setting.compiled or not compiled:  # what is not compiled does not fit
            return eager
        assert self.config.train is not None
        samples = self.config.train.niter * self.config.datasets["train"].batch_size
        best = max(compiled, key=lambda row: (len(row.speeds), _median(row)))
        return best if pays_back(eager, best, samples) and _faster(best, eager) else eager


def tune(
    config: Config, plan: Plan, record: Path, say: Callable[[str], None] = lambda words: None, measure: Measure | None = None
) -> Tuned:
    """Measures settings against each other and chooses one.

    Args:
        config: from `dlas.config.load`, for training.
        plan: how.
        record: JSON file of finished measurements; a search that was stopped goes on from it.
        say: told how it goes.
        measure: takes one measurement; by default for real.

    Raises:
        TrainingError: nothing fits into memory.
    """
    return _Search(config, plan, record, say, measure or partial(measuring.measure, patience=plan.patience)).run()


def choose(rows: Sequence[Row]) -> Row:
    """The fastest of those that were measured in all rounds; of what cannot be told from it, the least memory and workers."""
    most = max(len(row.speeds) for row in rows)
    rows = [row for row in rows if len(row.speeds) == most]
    fastest = max(rows, key=_median)
    alike = [row for row in rows if not _faster(fastest, row) and _median(row) >= _ALIKE * _median(fastest)]
    return min(alike, key=lambda row: (row.memory or 0, row.setting.n_workers, -_median(row)))


def pays_back(eager: Row, compiled: Row, samples: int) -> bool:
    """Whether a run of so many samples is over earlier when it is compiled, the time of compiling included."""
    slow, fast = (statistics.median(row.speeds.values()) for row in (eager, compiled))
    ratio = paired(compiled.speeds, eager.speeds)
    gain = ratio.median if ratio is not None else fast / slow
    return samples / slow * (1 - 1 / gain) > compiled.start


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Settings than which no other one is faster with no more memory, or as fast with less: by medians, so noise and all."""
    return [row for row in rows if not any(_dominates(other, row) for other in rows if other is not row)]


def _median(row: Row) -> float:
    return row.against.median if row.against is not None else 0.0


def _dominates(one: Row, other: Row) -> bool:
    speeds, memories = (_median(one), _median(other)), (one.memory or 0, other.memory or 0)
    better = speeds[0] > speeds[1] or memories[0] < memories[1]
    return speeds[0] >= speeds[1] and memories[0] <= memories[1] and better


def _faster(one: Row, other: Row) -> bool:
    """Whether one is faster than the other for certain."""
    ratio = paired(one.speeds, other.speeds)
    return ratio is not None and ratio.median > 1 and ratio.certain


def _in_a_line(error: Exception) -> str:
    """Why it failed."""
    if isinstance(error, CompilationError):
        return error.reason[:_LONGEST]
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_LONGEST]


def circumstances(config: Config, device: torch.device, plan: Plan) -> dict[str, str | float]:
    """What measurements depend on, beside the setting."""
    plain = to_plain(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} with {torch.get_num_threads()} threads"
    return {
        "file": hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "device": name,
        "torch": str(torch.__version__),
        "seconds": plan.seconds,
        "memory": plan.memory or 0,
    }
