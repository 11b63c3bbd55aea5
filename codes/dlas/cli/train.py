"""`dlas train`."""

from __future__ import annotations

import argparse

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest complete checkpoint of the run, if there is one; never: set an older run aside",
    )
    parser.add_argument(
        "--launcher",
        choices=("auto", "none", "pytorch", "slurm"),
        default="auto",
        help="what started the processes of this run: torchrun (pytorch), srun (slurm), nothing (none); auto finds out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains."""
    config = load(arguments.opt, arguments.set)
    from dlas.engine.distributed.launch import joined
    from dlas.engine.trainer import Trainer
    from dlas.observe.console import start_console

    with joined(config, arguments.launcher) as ranks:
        start_console(ranks.rank)
        result = Trainer(config, resume=arguments.resume, source=arguments.opt).run()
    return 128 + result.stopped_by if result.stopped_by is not None else 0
