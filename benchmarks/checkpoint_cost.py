"""How long a checkpoint keeps the training loop: written in the background, and written while the loop waits.

    python benchmarks/checkpoint_cost.py [--rounds 9] [--folder FOLDER]

RRDBNet as published (nf 64, nb 23: 16.7 million parameters) with the state of Adam and an average of the weights, in turn with
each way of saving in one process, so that other load on the machine hits both alike. Prints one JSON line: the medians over
rounds of the time that `save` takes, their ratio, and how much longer training steps take while the background writes.
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

from dlas.archs import create_network
from dlas.config.schema import CheckpointsConfig
from dlas.engine.checkpoint_writer import CheckpointWriter
from dlas.engine.host_copy import Snapshot
from dlas.observe.run_folder import RunFolder


class Run:
    """A network, its average and its optimiser, as the trainer has them."""

    def __init__(self) -> None:
        self.network = create_network({"which_model_G": "RRDBNet", "nf": 64, "nb": 23, "gc": 32, "scale": 4})
        self.average = create_network({"which_model_G": "RRDBNet", "nf": 64, "nb": 23, "gc": 32, "scale": 4})
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, fused=True)
        self.input = torch.rand(1, 3, 8, 8)
        self.iterate()

    def iterate(self) -> None:
        """A training step, small, so that there are many of them while a checkpoint is written."""
        self.optimizer.zero_grad()
        self.network(self.input).square().mean().backward()
        self.optimizer.step()

    def snapshot(self, step: int) -> Snapshot:
        """What the trainer would save."""
        return Snapshot(
            step,
            {"generator": self.network.state_dict()},
            {"generator": self.average.state_dict()},
            {"step": step},
            {"generator": {"optimizer": self.optimizer.state_dict()}},
            {"generator": [name for name, _ in self.network.named_parameters()]},
        )


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """How long a call takes: by the clock, and of this thread's processor time, which other load does not change as much."""
    start, start_cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - start, time.thread_time() - start_cpu


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    logging.getLogger("dlas").setLevel(logging.ERROR)
    run = Run()
    blocked: dict[bool, list[float]] = {True: [], False: []}
    cpu: dict[bool, list[float]] = {True: [], False: []}
    alone, beside, writing = [], [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        writers = {}
        for background in (True, False):
            folder = RunFolder(Path(name) / str(background))
            folder.claim()
            writers[background] = CheckpointWriter(folder, CheckpointsConfig(background=background, keep_last=1))
            writers[background].prepare(run.snapshot(0), [])
            writers[background].save(run.snapshot(0))  # the first one finds its memory new; the loop above it was warm as well
            writers[background].wait()
        for number in range(1, arguments.rounds + 1):
            for background in (True, False) if number % 2 else (False, True):
                alone += [seconds(run.iterate)[0] for _ in range(3)]
                wall, processor = seconds(lambda b=background, n=number: writers[b].save(run.snapshot(n)))  # type: ignore[misc]
                blocked[background].append(wall)
                cpu[background].append(processor)
                if background:
                    began, thread = time.perf_counter(), writers[True]._thread
                    while thread is not None and thread.is_alive():
                        beside.append(seconds(run.iterate)[0])
                    writing.append(time.perf_counter() - began)
                writers[background].wait()
        size = writers[True]._copy.size
    medians = {background: statistics.median(times) for background, times in blocked.items()}
    result = {
        "case": "checkpoint, RRDBNet nf 64 nb 23 with Adam and average",
        "parameters": sum(p.numel() for p in run.network.parameters()),
        "megabytes": round(size / 1e6, 1),
        "blocked_background_ms": round(1e3 * medians[True], 1),
        "blocked_background_ms_quartiles": [round(1e3 * q, 1) for q in statistics.quantiles(blocked[True], n=4)[::2]],
        "blocked_plain_ms": round(1e3 * medians[False], 1),
        "blocked_plain_ms_quartiles": [round(1e3 * q, 1) for q in statistics.quantiles(blocked[False], n=4)[::2]],
        "ratio": round(medians[True] / medians[False], 4),
        "cpu_background_ms": round(1e3 * statistics.median(cpu[True]), 1),
        "cpu_plain_ms": round(1e3 * statistics.median(cpu[False]), 1),
        "writing_ms": round(1e3 * statistics.median(writing), 1),
        "step_ms": round(1e3 * statistics.median(alone), 1),
        "step_while_writing_ms": round(1e3 * statistics.median(beside), 1),
        "rounds": arguments.rounds,
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
