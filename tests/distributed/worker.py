"""Run under torchrun: trains one file after another in one process group. Arguments: a JSON list of jobs.

A job is [YAML file, overrides].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import components  # noqa: F401

import toys  # noqa: F401
from dlas.config import load
from dlas.engine.distributed.launch import joined
from dlas.engine.trainer import Trainer
from dlas.observe.console import start_console


def main() -> None:
    """Runs the jobs."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    first = load(Path(jobs[0][0]), jobs[0][1])
    with joined(first) as ranks:
        start_console(ranks.rank)
        for file, overrides in jobs:
            Trainer(load(Path(file), overrides)).run()


if __name__ == "__main__":
    main()
