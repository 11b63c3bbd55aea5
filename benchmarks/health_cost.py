"""What health checks and logging add to the quick start's step.

    python benchmarks/health_cost.py [--rounds 60] [--precision auto]

The network, batch and optimiser of options/train_x.yml, on data in memory. Steps with and without run in turn in one process,
two at a time, the order changing every round, so that other load on the machine hits both alike. Prints one JSON line per case:
the median over rounds of the paired ratio of wall and processor time, in percent above 1, with quartiles.

    checks     flags, guarded update and bookkeeping of the default policy
    + spikes   the same with spike detection, gradient norm included
    logging    everything a log line costs (gradient norm, averages read, row and line written), spread over print_freq
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

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "codes"), str(ROOT / "benchmarks")]

import torch
from step_overhead import InMemory  # registers the data set too

from dlas.config import load
from dlas.engine.trainer import Trainer, _Clock
from dlas.observe.console import progress_bar
from dlas.observe.recorder import Recorder

PRINT_FREQ = 100  # of train_x.yml


def trainer(folder: str, precision: str, *overrides: str) -> Trainer:
    """The quick start's run, on data in memory, ready to iterate."""
    assert InMemory
    data = "datasets.train={mode: bench_memory, batch_size: 8, size: 32, scale: 4}"
    common = [f"path.experiments={folder}", f"precision={precision}", data, "logger.tensorboard=false", "train.niter=1000000"]
    made = Trainer(load(ROOT / "options/train_x.yml", [*common, *overrides]))
    made.folder.path.mkdir(exist_ok=True)
    (made.folder.path / "config.resolved.yml").write_text("")
    made.recorder = Recorder(made.folder.metrics, None)
    made.clock, made.bar = _Clock(made.progress), progress_bar(1, 0)
    return made


def stepper(made: Trainer, log: bool = False) -> Callable[[], None]:
    """Runs two iterations as the loop does."""
    loader = made._loader()

    def run() -> None:
        for number in range(2):
            due = log and number == 1
            made.clock.waiting()
            batch = next(loader)
            made.clock.working()
            made.iterate(batch, log_gradients=due)
            made._attend_to_health(wait=due)
            if due:
                made._log(loader)

    return run


def without_health(made: Trainer) -> Trainer:
    """The same trainer with every update made unseen."""
    made.runner.health = None
    for step in made.steps:
        step.guard = None
    return made


def compare(on: Callable[[], None], off: Callable[[], None], rounds: int, spread: int = 1) -> dict[str, object]:
    """Percent that `on` takes more than `off`, by pairs, over `spread`."""
    for each in (on, off) * 2:
        each()
    wall, cpu, seconds_off = [], [], []
    for number in range(rounds):
        seconds = {}
        for each in (on, off) if number % 2 else (off, on):
            start, start_cpu = time.perf_counter(), time.process_time()
            each()
            seconds[each] = time.perf_counter() - start, time.process_time() - start_cpu
        wall.append(100 * (seconds[on][0] / seconds[off][0] - 1) / spread)
        cpu.append(100 * (seconds[on][1] / seconds[off][1] - 1) / spread)
        seconds_off.append(seconds[off][0])
    return {
        "percent": round(statistics.median(wall), 3),
        "quartiles": [round(q, 3) for q in statistics.quantiles(wall, n=4)[::2]],
        "cpu_percent": round(statistics.median(cpu), 3),
        "cpu_quartiles": [round(q, 3) for q in statistics.quantiles(cpu, n=4)[::2]],
        "step_ms": round(1e3 * statistics.median(seconds_off) / 2, 1),
    }


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    logging.getLogger("dlas").setLevel(logging.ERROR)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        bare = stepper(without_health(trainer(folder, arguments.precision, "name=bare")))
        checked = stepper(trainer(folder, arguments.precision, "name=checked"))
        spikes = stepper(trainer(folder, arguments.precision, "name=spikes", "train.health.spike=skip"))
        logged = stepper(trainer(folder, arguments.precision, "name=logged"), log=True)
        cases = [
            ("checks", checked, bare, 1),
            ("checks + spikes", spikes, bare, 1),
            ("logging", logged, checked, PRINT_FREQ // 2),  # one line in two steps here
        ]
        for case, on, off, spread in cases:
            figures = compare(on, off, arguments.rounds, spread)
            print(json.dumps({"case": case, **figures, "rounds": arguments.rounds, **machine}), flush=True)


if __name__ == "__main__":
    main()
