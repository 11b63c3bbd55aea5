"""Time of `dlas check` on the largest shipped options file, from the start of the process to its end.

    python benchmarks/check_time.py

Prints one JSON line: the median of five runs in seconds, all five, and for comparison that of an interpreter that does nothing.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5


def seconds(*arguments: str) -> list[float]:
    """Wall-clock times of a Python process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "codes")}
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    """Prints the figures."""
    file = max((ROOT / "options").glob("train*.yml"), key=lambda path: path.stat().st_size)
    times = seconds("-m", "dlas", "check", "-opt", str(file.relative_to(ROOT)))
    result = {
        "benchmark": "check_time",
        "file": str(file.relative_to(ROOT)),
        "lines": len(file.read_text(encoding="utf-8").splitlines()),
        "median_s": round(statistics.median(times), 3),
        "runs_s": [round(each, 3) for each in times],
        "empty_interpreter_s": round(statistics.median(seconds("-c", "pass")), 3),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
