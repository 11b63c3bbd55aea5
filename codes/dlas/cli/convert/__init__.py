"""`dlas convert COMMAND`: one file of this folder a command.

Each offers a `SUMMARY`, `arguments(parser)`, which declares its arguments, and `run(arguments) -> exit status`.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares each command with its arguments."""
    commands = parser.add_subparsers(dest="convert_command", required=True, metavar="COMMAND")
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        command = importlib.import_module(f"{__name__}.{name}")
        words = command.SUMMARY
        subparser = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        command.arguments(subparser)
        subparser.set_defaults(convert_run=command.run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    status: int = arguments.convert_run(arguments)
    return status
