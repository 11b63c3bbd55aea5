"""Run under torchrun: trains one file after another in one process group, and compares what the ranks have in the end.

The argument is a JSON file: a list of jobs, each a YAML file and overrides.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import components  # noqa: F401

import toys  # noqa: F401
from dlas.config import load
from dlas.engine.distributed.launch import joined
from dlas.engine.trainer import Trainer
from dlas.observe.console import start_console


def main() -> None:
    """Runs the jobs."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with joined(load(Path(jobs[0][0]), jobs[0][1])) as ranks:
        start_console(ranks.rank)
        for file, overrides in jobs:
            gc.freeze()  # what is imported by now need not be looked through after each run
            trainer = Trainer(load(Path(file), overrides))
            trainer.run()
            if trainer.strategy.whole:
                averages = [ema.state_dict() for ema in trainer.averages.all()]
                networks = [network.state_dict() for network in trainer.networks.values()]
                sums = [float(value.double().sum()) for state in (*averages, *networks) for value in state.values()]
                every = ranks.gather((sums, trainer.progress.samples, trainer.progress.best))
                assert len({str(each) for each in every}) == 1, "the ranks differ"
            del trainer
            gc.collect()  # what torch holds of a run goes here, and not in whichever thread collects next


if __name__ == "__main__":
    main()
