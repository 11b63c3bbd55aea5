"""`dlas test`."""

from __future__ import annotations

import argparse

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates and prints a table for each data set."""
    config = load(arguments.opt, arguments.set, mode="test")
    from dlas.engine.testing import run_test
    from dlas.observe.console import start_console

    start_console()
    for name, result in run_test(config).items():
        print(f"\n{name}: {len(result.pictures)} pictures in {result.folder}")
        if result.means:
            print(result.table())
    return 0
