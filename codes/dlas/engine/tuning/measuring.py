"""How fast a setting trains, and what memory it takes: the trainer's own iterations on the file's data."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, replace

import torch

from dlas.config import Config
from dlas.data.loader import Loader
from dlas.engine.compiling import CompilationError
from dlas.engine.dryrun import dry_run
from dlas.engine.out_of_memory import is_out_of_memory, release_memory
from dlas.engine.trainer import Trainer
from dlas.engine.tuning.patience import TookTooLongError, at_most

_FEWEST = 3  # iterations that are timed
_MOST = 10  # iterations in which networks may be compiled
_NO_END = 10**9  # iterations: measuring must not meet the end of a run


@dataclass(frozen=True)
class Speed:
    """One measurement.

    Args:
        samples_per_second: data and all.
        peak_bytes: largest memory that tensors took on the GPU; None on a CPU, where this cannot be told from the rest.
        start: seconds from the first iteration until it runs at this speed, beyond what these iterations take then: compiling.
    """

    samples_per_second: float
    peak_bytes: int | None
    start: float = 0.0


def measure(config: Config, device: torch.device, seconds: float, iteration: int, patience: float = math.inf) -> Speed | None:
    """Trains for some seconds; None if memory runs out.

    Nothing is written where the run would write.

    Args:
        config: with the setting applied.
        device: of the run.
        seconds: to train for, after some iterations that do not count: the first ones, and as many as workers have read ahead.
        iteration: number of completed iterations that gates and schedules are told at the start.
        patience: seconds that compiling may take, where networks are compiled.

    Raises:
        CompilationError: a network cannot be compiled, or not in time.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="dlas-tune-") as folder:
            return _measure(_standing_alone(config, folder), device, seconds, iteration, patience)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    finally:
        if config.compile:
            torch.compiler.reset()  # what is compiled belongs to networks that are gone, and torch keeps only so many versions
    release_memory(device)  # behind the handler: its frames hold what the attempt has left
    return None


def _measure(config: Config, device: torch.device, seconds: float, iteration: int, patience: float) -> Speed:
    section = config.datasets["train"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer = Trainer(config)
    trainer.progress.step = iteration
    with trainer._loader() as loader:
        begun, warm = time.perf_counter(), 2 + section.n_workers * section.prefetch_factor
        done = _compile(trainer, loader, patience) if config.compile else 0
        for _ in range(warm):
            trainer.iterate(next(loader))
        _wait_for(device)
        begun = time.perf_counter() - begun
        start, before = time.perf_counter(), trainer.progress.samples
        count = 0
        while count < _FEWEST or time.perf_counter() - start < seconds:
            trainer.iterate(next(loader))
            count += 1
        _wait_for(device)
        taken = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    speed = Speed((trainer.progress.samples - before) / taken, peak, max(begun - (warm + done) * taken / count, 0.0))
    del trainer, loader
    release_memory(device)
    return speed


def _compile(trainer: Trainer, loader: Loader, patience: float) -> int:
    """Iterates until nothing is compiled any more, or for some iterations; returns how many."""
    compiled = -1
    try:
        with at_most(patience):
            for number in range(_MOST):
                if trainer.compilation.count == compiled:
                    return number
                compiled = trainer.compilation.count
                trainer.iterate(next(loader))
    except TookTooLongError as error:
        raise CompilationError(", ".join(trainer.networks), str(error), []) from None
    return _MOST


def forecast(config: Config) -> int | None:
    """The largest memory that tensors take by a rehearsal, in bytes; None if it fails."""
    try:
        largest = dry_run(config).largest
    except Exception:  # of foreign components, in any way: measuring goes on without
        return None
    return None if largest is None else largest.peak.total


def heaviest_iteration(config: Config) -> int:
    """The iteration of the run that takes most memory: every gate that opens late is open there; 0 if that is not known."""
    try:
        largest = dry_run(config).largest
    except Exception:
        return 0
    return 0 if largest is None else largest.number


def _standing_alone(config: Config, folder: str) -> Config:
    """Without validation, pictures and an end, below a folder of its own."""
    assert config.train is not None
    return replace(
        config,
        datasets={"train": config.datasets["train"]},
        train=replace(config.train, niter=config.train.niter + _NO_END),
        checkpoints=replace(config.checkpoints, keep_best=None),
        logger=replace(config.logger, visuals=[], tensorboard=False, efficiency=False),
        path=replace(config.path, experiments=folder, resume_state=None),
    )


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
