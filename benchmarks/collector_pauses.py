"""How long Python's garbage collector stops a training, and what the loop would gain without it.

    python benchmarks/collector_pauses.py [--rounds 9] [--steps 300] [--workers 0]

The quick start's run (options/train_x.yml), log lines included, with data in memory and on a small batch, so that pauses weigh
as much as they can. Blocks of steps run in turn in one process: with the collector as Python sets it, with everything that is
there at the beginning of the block frozen (`gc.freeze`), and with automatic collection off. Prints one JSON line: objects that
the collector follows; by generation, collections in a thousand steps and their median and largest time in ms; the share of the
loop's time that they take together; what a full collection takes, and takes behind `gc.freeze`; and quartiles of the paired
ratios, as it is / otherwise. All in processor time.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from health_cost import SMALL, trainer
from paired import describe_machine, quartiles

from dlas.engine.interrupt import StopRequest

WAYS = ("as it is", "frozen", "off")


class Pauses:
    """Times of collections by generation, in ms."""

    def __init__(self) -> None:
        self.found: dict[int, list[float]] = {0: [], 1: [], 2: []}
        self._start = 0.0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """For `gc.callbacks`."""
        now = time.thread_time()
        if phase == "stop":
            self.found[info["generation"]].append(1e3 * (now - self._start))
        self._start = now

    def figures(self, steps: int) -> dict[str, list[float]]:
        """By generation: how many in a thousand steps, the median, the largest."""
        found = {}
        for number, times in self.found.items():
            if times:
                figures = 1e3 * len(times) / steps, statistics.median(times), max(times)
                found[f"generation_{number}"] = [round(each, 3) for each in figures]
        return found


def full_ms() -> float:
    """What a collection of everything takes."""
    start = time.thread_time()
    gc.collect()
    return round(1e3 * (time.thread_time() - start), 1)


def main() -> None:
    """Runs all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    options = parser.parse_args()
    logging.getLogger("dlas").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    pauses = Pauses()
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(folder, "pauses", "fp32", SMALL, f"datasets.train.n_workers={options.workers}")
        run.folder.checkpoints.mkdir(parents=True)
        with run._loader() as loader:

            def block() -> None:
                run.advance(loader, run.progress.step + options.steps, StopRequest())

            block()
            figures: dict[str, Any] = {"objects": len(gc.get_objects()), "full_ms": full_ms()}
            gc.freeze()
            figures["full_frozen_ms"] = full_ms()
            gc.unfreeze()
            for number in range(options.rounds):
                for way in WAYS if number % 2 else reversed(WAYS):
                    if way == "frozen":
                        gc.freeze()
                    elif way == "off":
                        gc.disable()
                    else:
                        gc.callbacks.append(pauses)
                    start = time.process_time()
                    block()
                    times[way].append(time.process_time() - start)
                    gc.enable()
                    gc.unfreeze()
                    if pauses in gc.callbacks:
                        gc.callbacks.remove(pauses)
    figures |= pauses.figures(options.rounds * options.steps)
    paused = sum(sum(each) for each in pauses.found.values()) / 1e3
    figures["paused_share"] = round(paused / sum(times["as it is"]), 6)
    figures["step_ms"] = round(1e3 * statistics.median(times["as it is"]) / options.steps, 2)
    for way in WAYS[1:]:
        figures[f"ratio_{way}"] = quartiles([a / b for a, b in zip(times["as it is"], times[way], strict=True)])
    print(json.dumps({"case": "collector pauses", **figures, "rounds": options.rounds, **describe_machine()}))


if __name__ == "__main__":
    main()
