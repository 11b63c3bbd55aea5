"""What health checks and logging add to the quick start's step.

    python benchmarks/health_cost.py [--rounds 300] [--precision auto]

The network, batch and optimiser of options/train_x.yml, on data in memory. What is added does not depend on the size of the
batch, only on the network's tensors, so it is measured on a batch of one small picture, where a step is short: single steps
with and without in turn in one process and on one thread, the order changing each round, in processor time, which other load on
the machine disturbs least. Prints one JSON line per case: the median over rounds of the paired difference in microseconds, with
quartiles; the difference of the lower deciles, which load disturbs less still; and what percentage the larger of the two is of
the quick start's own step. That step is measured in processor time on one thread too and divided by the number of threads as if
they shared the work perfectly, so the percentage is an upper bound.

    checks           flags, guarded update and bookkeeping of the default policy
    checks + spikes  the same with spike detection, gradient norm included
    logging          everything a log line costs (gradient norm, averages read, row and line written), spread over print_freq
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from step_overhead import InMemory  # registers the data set too

from dlas.config import load
from dlas.engine.throughput import Throughput
from dlas.engine.trainer import Trainer
from dlas.observe.console import progress_bar
from dlas.observe.recorder import Recorder

ROOT = Path(__file__).resolve().parent.parent
FULL = "{mode: bench_memory, batch_size: 8, size: 32, scale: 4}"  # as train_x.yml
SMALL = "{mode: bench_memory, batch_size: 1, size: 8, scale: 4}"
PRINT_FREQ = 100  # of train_x.yml


def trainer(folder: str, name: str, precision: str, data: str, *overrides: str) -> Trainer:
    """The quick start's run, on data in memory, ready to iterate."""
    assert InMemory
    common = [f"path.experiments={folder}", f"name={name}", f"precision={precision}", f"datasets.train={data}"]
    made = Trainer(load(ROOT / "options/train_x.yml", [*common, "logger.tensorboard=false", "train.niter=1000000", *overrides]))
    made.folder.path.mkdir(exist_ok=True)
    (made.folder.path / "config.resolved.yml").write_text("")
    made.recorder = Recorder(made.folder.metrics, None)
    made.bar = progress_bar(1, 0)
    made.throughput = Throughput(made.config, made.progress, made.device, made.precision, made.work)
    return made


def stepper(made: Trainer, log: bool = False) -> Callable[[], None]:
    """Runs an iteration as the loop does."""
    loader = made._loader()

    def run() -> None:
        made.iterate(next(loader), log_gradients=log)
        made._attend_to_health(wait=log)
        if log:
            made._log()

    return run


def without_health(made: Trainer) -> Trainer:
    """The same trainer with every update made unseen."""
    made.runner.health = None
    for step in made.steps:
        step.guard = None
    return made


def seconds(run: Callable[[], None]) -> float:
    """Processor time that it takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    logging.getLogger("dlas").setLevel(logging.ERROR)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:

        def make(name: str, *overrides: str) -> Trainer:
            return trainer(folder, name, arguments.precision, SMALL, *overrides)

        whole = stepper(trainer(folder, "whole", arguments.precision, FULL))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        step = min(seconds(whole) for _ in range(10)) / threads
        bare, checked = stepper(without_health(make("bare"))), stepper(make("checked"))
        spikes = stepper(make("spikes", "train.health.spike=skip"))
        logged = stepper(make("logged"), log=True)
        cases = [("checks", checked, bare, 1), ("checks + spikes", spikes, bare, 1), ("logging", logged, checked, PRINT_FREQ)]
        for case, on, off, spread in cases:
            for each in (on, off) * 3:
                each()
            taken: dict[Callable[[], None], list[float]] = {on: [], off: []}
            for number in range(arguments.rounds):
                for each in (on, off) if number % 2 else (off, on):
                    taken[each].append(1e6 * seconds(each) / spread)
            added = [a - b for a, b in zip(taken[on], taken[off], strict=True)]
            quiet = statistics.quantiles(taken[on], n=10)[0] - statistics.quantiles(taken[off], n=10)[0]
            figures = {
                "added_us": round(statistics.median(added), 1),
                "quartiles_us": [round(q, 1) for q in statistics.quantiles(added, n=4)[::2]],
                "decile_added_us": round(quiet, 1),
                "step_ms": round(1e3 * step, 1),
                "percent": round(100 * max(statistics.median(added), quiet) / (1e6 * step), 3),
            }
            print(json.dumps({"case": case, **figures, "rounds": arguments.rounds, **machine}), flush=True)


if __name__ == "__main__":
    main()
