"""`dlas check`."""

from __future__ import annotations

import argparse

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import check


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("--mode", choices=("train", "test"), help="what the file is for; by default to train")
    parser.add_argument(
        "--as-upstream", action="store_true", help="list every translation of a DL-Art-School spelling, and what it did there"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints every problem."""
    problems = check(arguments.opt, arguments.set, arguments.mode)
    translations = [problem for problem in problems if problem.severity == "notice"]
    for problem in problems:
        if not (arguments.as_upstream and problem.severity == "notice"):
            print(problem)
    if arguments.as_upstream:
        print(f"{arguments.opt}: translations: {len(translations) or 'none'}")
        for problem in translations:
            print(f"  {problem}")
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{arguments.opt}: {errors} error{'s' * (errors != 1)}, {len(problems) - errors} warnings and notices")
    return 2 if errors else 0
