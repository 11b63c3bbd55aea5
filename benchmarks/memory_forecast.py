"""The memory and time that `dlas check --dry` forecasts, beside what training really takes.

    python benchmarks/memory_forecast.py [--cases rrdb gan ...] [--device cpu|cuda]

Each case is forecast here and trained in processes of its own. On a CPU `measured_mb` is added up from the record of torch's
allocator (torch.profiler with profile_memory), and `resident_mb` is the kernel's figure for the growth of the process (VmHWM),
which also holds the decoded pictures, code, and what oneDNN and malloc take for themselves. On CUDA `measured_mb` is
torch.cuda.max_memory_allocated. The iteration of the forecast that needs most memory is compared with the largest of the same
iterations in training. Prints one JSON line per case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch

from dlas.config import Config, load
from dlas.engine.dryrun import dry_run, measure_this_machine
from dlas.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
QUICK_START = "options/train_x.yml"
PLAIN = [
    "precision=fp32", "memory_format=contiguous", "networks.generator.additive_mode=not", "networks.generator.gc=32",
    "networks.generator.zero_init_last=false",
]  # fmt: skip
CASES: dict[str, tuple[str, list[str]]] = {
    "rrdb": (
        QUICK_START,
        [*PLAIN, "networks.generator.nf=32", "networks.generator.nb=4", "datasets.train.batch_size=4"],
    ),
    "quick_start": (QUICK_START, []),
    "gan": ("options/train_gan_x.yml", []),
    "rrdb_large": (
        QUICK_START,
        [*PLAIN, "networks.generator.nf=64", "networks.generator.nb=12", "datasets.train.batch_size=8"],
    ),
    "rrdb_checkpointing": (
        QUICK_START,
        [*PLAIN, "networks.generator.nf=64", "networks.generator.nb=8", "checkpointing_enabled=true"],
    ),
    "rrdb_micro_batches": (
        QUICK_START,
        [*PLAIN, "networks.generator.nf=64", "networks.generator.nb=6", "train.mega_batch_factor=3"],
    ),
}


def configure(case: str, device: str, folder: str) -> Config:
    """The configuration of a case."""
    file, overrides = CASES[case]
    return load(ROOT / file, [*overrides, f"device={device}", f"path.experiments={folder}"])


def forecast(case: str, device: str) -> dict[str, Any]:
    """The forecast, and the iterations that it is about."""
    machine = measure_this_machine()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = dry_run(configure(case, device, folder), machine)
        seconds = time.perf_counter() - started
    assert result.largest is not None and not [p for p in result.problems if p.severity == "error"], result.problems
    return {
        "forecast_mb": result.largest.peak.total / 1e6,
        "forecast_seconds": seconds,
        "iterations": [each.number for each in result.iterations if each.in_run],
        "iteration_forecast_ms": 1e3 * sum(cost.seconds or 0.0 for cost in result.largest.costs),
        "largest": result.largest.number,
    }


def train(case: str, device: str, how: str, iterations: list[int], largest: int) -> dict[str, float]:
    """Trains one iteration of each kind twice and measures the second. Runs in a process of its own."""
    torch.nn.Conv2d(8, 8, 3)(torch.rand(1, 8, 8, 8, requires_grad=True)).sum().backward()  # loads what is loaded once
    before = _resident()["VmRSS"]
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with tempfile.TemporaryDirectory() as folder:
        if how == "profiler":
            profiler.start()
        run = Trainer(configure(case, device, folder))
        with run._loader() as loader:
            batches = [next(loader) for _ in iterations]
        run.progress.step = max(iterations)
        run.iterate(dict(batches[0]))  # every optimiser has its state from here on
        if how == "time":
            run.progress.step = largest
            return {"iteration_ms": 1e3 * min(_timed(run, dict(batches[0]), largest) for _ in range(3))}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for number, batch in zip(iterations, batches, strict=True):
            run.progress.step = number
            with torch.profiler.record_function("measured"):
                run.iterate(dict(batch))
        if device == "cuda":
            return {"measured_mb": torch.cuda.max_memory_allocated() / 1e6}
        if how == "profiler":
            profiler.stop()
            return {"measured_mb": _largest_held(profiler) / 1e6}
        return {"resident_mb": (_resident()["VmHWM"] - before) / 1e6}


def _timed(run: Trainer, batch: dict[str, Any], number: int) -> float:
    run.progress.step = number
    started = time.perf_counter()
    run.iterate(batch)
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _largest_held(profiler: torch.profiler.profile) -> int:
    """The most bytes held at one time since the measured iterations began, of all that the allocator handed out."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    start = min(event.start_ns() for event in events if event.name() == "measured")
    held = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        if event.start_ns() >= start:
            most = max(most, held)
    return most


def _resident() -> dict[str, int]:
    """Memory of this process in bytes: now (VmRSS) and at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def _in_a_process(case: str, device: str, how: str, known: dict[str, Any]) -> dict[str, float]:
    arguments = json.dumps([case, device, how, known["iterations"], known["largest"]])
    # What is freed goes back to the system at once, or the process would look larger than what it holds.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--train", arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(*json.loads(arguments.train))))
        return
    for case in arguments.cases:
        result = forecast(case, arguments.device)
        for how in ("profiler", "resident", "time") if arguments.device == "cpu" else ("memory", "time"):
            result |= _in_a_process(case, arguments.device, how, result)
        result["forecast_over_measured"] = result["forecast_mb"] / result["measured_mb"]
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}
        where = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
        print(json.dumps({"benchmark": "memory_forecast", "case": case, "on": where, "torch": torch.__version__, **rounded}))


if __name__ == "__main__":
    main()
