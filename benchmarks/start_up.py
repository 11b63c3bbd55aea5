"""How long the command line takes to begin: `dlas --help`, `check`, `list`, and until a first training step is done.

    python benchmarks/start_up.py [--rounds 5]

Two trainings: benchmarks' own smallest one, of an in-memory data set, which shows what comes before a step of any run, and the
quick start, `options/train_x.yml` itself. Prints a JSON line for each: seconds of processor time and by the clock, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import describe_machine

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "dlas --help": ["-m", "dlas", "--help"],
    "dlas list archs": ["-m", "dlas", "list", "archs"],
    "dlas check": ["-m", "dlas", "check", "-opt", "options/train_rrdb_psnr.yml"],
    "first step of the smallest training": ["benchmarks/first_step.py"],
    "first step of the quick start": ["benchmarks/quick_start_step.py"],
}


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Processor time of a Python process and what it started, and time by the clock."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "codes"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, end - start


def main() -> None:
    """Times all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    for name, found in times.items():
        cpu, wall = (round(statistics.median(each), 2) for each in zip(*found, strict=True))
        figures = {"cpu_s": cpu, "wall_s": wall, "rounds": rounds}
        print(json.dumps({"case": f"start-up: {name}", **figures, **describe_machine()}), flush=True)


if __name__ == "__main__":
    main()
