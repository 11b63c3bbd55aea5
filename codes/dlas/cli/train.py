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


def run(arguments: argparse.Namespace) -> int:
    """Trains."""
    config = load(arguments.opt, arguments.set)
    from dlas.engine.trainer import Trainer
    from dlas.observe.console import start_console

    start_console()
    result = Trainer(config, resume=arguments.resume, source=arguments.opt).run()
    return 128 + result.stopped_by if result.stopped_by is not None else 0
