"""`dlas check`."""

from __future__ import annotations

import argparse

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import check


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("--mode", choices=("train", "test"), default="train", help="what the file is for")


def run(arguments: argparse.Namespace) -> int:
    """Prints every problem."""
    problems = check(arguments.opt, arguments.set, arguments.mode)
    for problem in problems:
        print(problem)
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{arguments.opt}: {errors} error{'s' * (errors != 1)}, {len(problems) - errors} warnings and notices")
    return 2 if errors else 0
