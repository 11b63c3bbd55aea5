"""Running iterations on fake tensors and writing down what they did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dlas.config import Config, Problem
from dlas.config.schema import StepConfig
from dlas.engine.averages import Averages
from dlas.engine.cutting import Cutting
from dlas.engine.device import memory_format
from dlas.engine.dryrun.batch import fake_batch
from dlas.engine.dryrun.building import DEVICE, FakePrecision, build_fake_networks, buildable_part, outputs
from dlas.engine.dryrun.devices import Device
from dlas.engine.dryrun.kinds import iteration_kinds, switched_on
from dlas.engine.dryrun.problems import ProblemList, describe
from dlas.engine.dryrun.tracker import Peak, Tracker
from dlas.engine.dryrun.watched import RehearsedStep, Stage
from dlas.engine.iteration import IterationRunner
from dlas.engine.microbatch import MicroBatch
from dlas.engine.step import TrainingStep
from dlas.optim.schedules import build_schedule

_CUDA_BLOCK = 512  # bytes; torch's CUDA allocator hands out multiples of it


@dataclass(frozen=True)
class NetworkSize:
    """Parameters of a network: those that are trained, and the others."""

    name: str
    which_model: str
    trainable: int
    frozen: int


@dataclass(frozen=True)
class StateEntry:
    """A state key of the first micro-batch.

    Args:
        key: the key.
        value: type and shape, or the value where it is no tensor.
        writer: YAML path of what writes it.
    """

    key: str
    value: str
    writer: str


@dataclass(frozen=True)
class StepCost:
    """What a step costs in one iteration: floating-point operations of its products and convolutions, forward and backward
    (a multiply-add is two), and seconds by the forecast, if a device was named."""

    step: str
    flops: int
    seconds: float | None


@dataclass(frozen=True)
class Iteration:
    """One kind of iteration: a set of gates that are open together.

    Args:
        number: the first iteration of the kind (number of completed ones).
        in_run: it is reached before `train.niter`.
        switched: YAML paths of the gated parts that are on.
        state: the entries of the state at its end.
        costs: of each step that runs, and, without a name, of what is done for all: cutting the batch, averages.
        peak: the largest memory alive at one time.
    """

    number: int
    in_run: bool
    switched: list[str]
    state: list[StateEntry]
    costs: list[StepCost]
    peak: Peak


@dataclass
class DryRun:
    """What a rehearsal found.

    Args:
        problems: in the order of the file's lines.
        device: the named device.
        automatic: `micro_batch_size: auto`.
        cuda: the forecast is for a GPU.
        precision: the one that `auto` becomes on the device, else the file's.
        samples: in the first micro-batch.
        parts: micro-batches per batch.
        networks: their sizes.
        iterations: one for each kind.
        tried: peak memory in bytes by the samples of a micro-batch, the last one the run's; several where
            `micro_batch_size: auto` has to look for one that fits.
    """

    problems: list[Problem] = field(default_factory=list)
    device: Device | None = None
    automatic: bool = False
    cuda: bool = False
    precision: str = "fp32"
    samples: int = 0
    parts: int = 1
    networks: list[NetworkSize] = field(default_factory=list)
    iterations: list[Iteration] = field(default_factory=list)
    tried: dict[int, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether it fits into the memory of the device, as far as that is known."""
        if self.device is None or self.device.memory is None or self.largest is None:
            return True
        return self.largest.peak.total <= self.device.memory * 1e9

    @property
    def largest(self) -> Iteration | None:
        """The iteration of the run that needs most memory."""
        return max((i for i in self.iterations if i.in_run), key=lambda i: i.peak.total, default=None)


def dry_run(config: Config, device: Device | None = None) -> DryRun:
    """Rehearses a training run: builds its networks, makes a batch and runs one iteration of each kind, all without memory.

    Args:
        config: from `dlas.config.load`, for training.
        device: the device to forecast for; without one the time is not forecast, and memory is for a GPU if the file or this
            machine has one. With `micro_batch_size: auto`, micro-batches are halved until they fit into its memory.
    """
    assert config.train is not None, "load(..., mode='train') gives a configuration with a train section"
    cutting = Cutting.of(config.train)
    tried: dict[int, int] = {}
    while True:
        result = _Rehearsal(config, device, cutting).run()
        if result.largest is None:
            return result
        tried[result.samples] = result.largest.peak.total
        result.tried, result.automatic = tried, cutting.automatic
        if not cutting.automatic or result.samples == 1 or result.fits:
            return result
        cutting.limit = -(-result.samples // 2)


class _Rehearsal:
    def __init__(self, config: Config, device: Device | None, cutting: Cutting) -> None:
        assert config.train is not None, "load(..., mode='train') gives a configuration with a train section"
        self.config = config
        self.niter = config.train.niter
        self.batch_size = config.datasets["train"].batch_size
        self.parts = cutting.count(self.batch_size)
        self.searches = cutting.automatic and cutting.size(self.batch_size) > 1
        self.device = device
        self.cuda = device.kind == "cuda" if device else _names_gpu(config.device)
        self.precision = FakePrecision(config.precision, cuda=self.cuda, bf16=_bf16(device, self.cuda))
        self.problems = ProblemList()
        # Real tensors turn fake on the way in: constants that a network made when it was imported.
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.stage = Stage(self.problems)

    def run(self) -> DryRun:
        result = DryRun(device=self.device, cuda=self.cuda, precision=self.precision.name, parts=self.parts)
        self.networks = build_fake_networks(self.config, self.mode, self.problems)
        self._check_batch_size()
        self._check_precision()
        section = self.config.datasets["train"]
        batch = None
        with self.problems.noting(section):
            batch = fake_batch(self.config, self.mode)
        if batch is not None:
            with self.mode:
                self.steps = self._build_steps()
                result.networks = self._sizes()
                result.samples = -(-self.batch_size // self.parts)
                result.iterations = [self._iterate(dict(batch), number) for number in iteration_kinds(self.config)]
        self._check_fit(result)
        result.problems = self.problems.in_order
        return result

    def _check_batch_size(self) -> None:
        section = self.config.datasets["train"]
        if self.batch_size < self.parts:
            message = f"a batch of {self.batch_size} cannot be cut into {self.parts} micro-batches"
            fix = "raise batch_size or lower train.mega_batch_factor"
            self.problems.note(section, Problem(section.mark, f"{section.yaml_path}.batch_size", message, fix))

    def _check_precision(self) -> None:
        if self.device is not None and self.device.kind == "cuda" and self.config.precision == "bf16" and not self.device.bf16:
            message = f"the {self.device.title} does not compute in bfloat16"
            self.problems.note(self.config, Problem(self.config.mark, "precision", message, "write 'precision: auto'"))

    # ------------------------------------------------------------------------------------------------------------- building

    def _build_steps(self) -> list[RehearsedStep]:
        steps = []
        for name, section in self.config.steps.items():
            usable, unwritten = buildable_part(section, self.networks, self.problems)
            self.stage.never_written |= unwritten
            if usable is None:
                continue
            with self.problems.noting(section) as attempt:
                step = RehearsedStep(name, usable, self.networks, self.precision, self.stage)
                self._check_schedule(step, section)
                steps.append(step)
            if not attempt.succeeded:
                self.stage.never_written |= {key for each in section.injectors.values() for key in outputs(each)}
        trained = {name for step in steps for name in step.trained}
        for name in self.networks.keys() - trained:
            self.networks[name].requires_grad_(False)
        trained_networks = {name: self.networks[name] for name in trained}
        self.averages = Averages(self.config.train.ema, trained_networks) if self.config.train else None
        for step in steps:
            _create_optimizer_state(step)
        return steps

    def _check_schedule(self, step: TrainingStep, section: StepConfig) -> None:
        train = self.config.train
        scheme = section.lr_scheme or (train.lr_scheme if train else None)
        if scheme is not None:
            with self.problems.noting(scheme):
                build_schedule({"type": scheme.type, **scheme.options}, step.optimizer, self.niter)

    def _sizes(self) -> list[NetworkSize]:
        sizes = []
        trained = {id(parameter) for step in self.steps for parameter in step.parameters}
        for name, network in self.networks.items():
            counts = {True: 0, False: 0}
            for parameter in network.parameters():
                counts[id(parameter) in trained] += parameter.numel()
            sizes.append(NetworkSize(name, self.config.networks[name].which_model, counts[True], counts[False]))
        return sizes

    # -------------------------------------------------------------------------------------------------------------- tracing

    def _iterate(self, batch: dict[str, Any], number: int) -> Iteration:
        layout = memory_format(self.config.memory_format)
        if self.cuda:  # the loader's batch stays on the host; on a CPU a converted copy lies beside it
            batch = {k: _laid_out(v, layout) for k, v in batch.items()}
        tracker = Tracker(_CUDA_BLOCK if self.cuda else 1)
        self._hold_what_is_there(tracker, batch, number)
        self.stage.begin(tracker, batch)
        runner = IterationRunner(
            self.steps,
            self.networks,
            self.averages,
            seed=self.config.seed,
            cutting=Cutting(self.parts),
            device=DEVICE,
            layout=layout,
        )
        with tracker:
            parts = runner.run(batch, number)
        return Iteration(
            number,
            number < self.niter,
            switched_on(self.config, number),
            self._state(parts[0]),
            [self._cost(tracker, part) for part in tracker.operations],
            tracker.peak,
        )

    def _averages_on_host(self) -> bool:
        return self.config.train is not None and self.config.train.ema.device == "cpu"

    def _hold_what_is_there(self, tracker: Tracker, batch: Mapping[str, Any], number: int) -> None:
        averages = self.averages.all() if self.averages is not None and not self._averages_on_host() else ()
        tracker.hold((p for network in self.networks.values() for p in network.parameters()), "parameters")
        tracker.hold((b for network in self.networks.values() for b in network.buffers()), "buffers")
        tracker.hold((average for ema in averages for average in ema._averages), "averages")
        tracker.hold((value for value in batch.values() if isinstance(value, Tensor)), "batch")
        for step in self.steps:
            tracker.hold(step.buffers(), "buffers")
            if number >= step.runs.after:
                tracker.hold(_optimizer_tensors(step), "optimizer state")

    def _state(self, part: MicroBatch) -> list[StateEntry]:
        return [
            StateEntry(
                key, describe(value), self.stage.writers.get(key, f"datasets.train ({self.config.datasets['train'].mode})")
            )
            for key, value in part.state.items()
        ]

    def _cost(self, tracker: Tracker, part: str) -> StepCost:
        operations = tracker.operations[part]
        seconds = self.device.seconds(operations, self.config.tf32) if self.device else None
        return StepCost(part, sum(operation.flops for operation in operations), seconds)

    def _check_fit(self, result: DryRun) -> None:
        largest = result.largest
        if largest is not None and self.device is not None and not result.fits and not self.searches:
            section = self.config.datasets["train"]
            message = (
                f"the run needs {largest.peak.total / 1e9:.1f} GB by the forecast, and the {self.device.title} has "
                f"{self.device.memory or 0:.0f} GB"
            )
            smaller = "set train.micro_batch_size: auto, lower batch_size or " if result.samples > 1 else "lower "
            fix = f"{smaller}the size of the samples, or set checkpointing_enabled"
            self.problems.note(section, Problem(section.mark, section.yaml_path, message, fix, "warning"))


def _create_optimizer_state(step: TrainingStep) -> None:
    for parameter in step.parameters:
        parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)


def _optimizer_tensors(step: TrainingStep) -> Iterator[Tensor]:
    yield from _tensors(step.optimizer.state.values())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _laid_out(value: Any, layout: torch.memory_format) -> Any:
    return value.contiguous(memory_format=layout) if isinstance(value, Tensor) and value.dim() == 4 else value


def _names_gpu(device: str) -> bool:
    return torch.cuda.is_available() if device == "auto" else device.startswith("cuda")


def _bf16(device: Device | None, cuda: bool) -> bool | None:
    if device is not None:
        return device.bf16
    return True if cuda and not torch.cuda.is_available() else None
