"""How long the command line takes to begin: processor time of `dlas --help`, `check`, `list`, and of a first training step.

    python benchmarks/start_up.py [--rounds 5]

The training is benchmarks' own smallest one, of an in-memory data set: what is timed is what comes before a step of any run,
imports above all. Prints a JSON line for each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import describe_machine

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "dlas --help": ["-m", "dlas", "--help"],
    "dlas list archs": ["-m", "dlas", "list", "archs"],
    "dlas check": ["-m", "dlas", "check", "-opt", "options/train_rrdb_psnr.yml"],
    "first step": ["benchmarks/first_step.py"],
}


def seconds(arguments: list[str]) -> float:
    """Processor time of a Python process and what it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "codes"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Times all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    for name, found in times.items():
        figures = {"cpu_s": round(statistics.median(found), 2), "rounds": rounds}
        print(json.dumps({"case": f"start-up: {name}", **figures, **describe_machine()}), flush=True)


if __name__ == "__main__":
    main()
