"""`dlas check`."""

from __future__ import annotations

import argparse

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import Problem, check, load
from dlas.errors import ConfigurationError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("--mode", choices=("train", "test"), help="what the file is for; by default what it looks like")
    parser.add_argument(
        "--as-upstream", action="store_true", help="list every translation of a DL-Art-School spelling, and what it did there"
    )
    parser.add_argument(
        "--dry", action="store_true", help="rehearse the training without memory: shapes, parameters, FLOP, a memory forecast"
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="with --dry: forecast for this device, for instance h100 (a wrong name lists them); 'here' measures this machine",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints every problem."""
    if arguments.device and not arguments.dry:
        raise ConfigurationError("--device belongs to --dry")
    problems = check(arguments.opt, arguments.set, arguments.mode)
    if not _errors(problems):
        problems += _missing_devices(arguments)
    tables = ""
    if arguments.dry and not _errors(problems):
        found, tables = _rehearse(arguments)
        problems += found
    translations = [problem for problem in problems if problem.severity == "notice"]
    for problem in problems:
        if not (arguments.as_upstream and problem.severity == "notice"):
            print(problem)
    if arguments.as_upstream:
        print(f"{arguments.opt}: translations: {len(translations) or 'none'}")
        for problem in translations:
            print(f"  {problem}")
    errors = _errors(problems)
    if tables and not errors:
        print(tables)
    print(f"{arguments.opt}: {errors} error{'s' * (errors != 1)}, {len(problems) - errors} warnings and notices")
    return 2 if errors else 0


def _missing_devices(arguments: argparse.Namespace) -> list[Problem]:
    config = load(arguments.opt, arguments.set, arguments.mode)
    if all(section.device is None for section in config.networks.values()):
        return []
    from dlas.engine.placement import missing_devices  # torch knows, and takes its time

    return missing_devices(config)


def _errors(problems: list[Problem]) -> int:
    return sum(problem.severity == "error" for problem in problems)


def _rehearse(arguments: argparse.Namespace) -> tuple[list[Problem], str]:
    if arguments.mode == "test":
        raise ConfigurationError("--dry rehearses a training; leave out '--mode test'")
    config = load(arguments.opt, arguments.set)
    from dlas.engine.dryrun import dry_run, render
    from dlas.engine.dryrun.devices import find_device

    result = dry_run(config, find_device(arguments.device) if arguments.device else None)
    return result.problems, render(result)
