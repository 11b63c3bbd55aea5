"""`dlas list`."""

from __future__ import annotations

import argparse
import shutil

from dlas.explain.catalogue import KINDS
from dlas.explain.listing import SECTIONS_KIND, list_kind, list_name

_WIDEST = 160


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", choices=[*sorted(KINDS), SECTIONS_KIND], help="what to list; sections are those of a YAML file")
    parser.add_argument("name", nargs="?", help="show the options of this one")


def run(arguments: argparse.Namespace) -> int:
    """Prints names with a line each, or one component or section with its options."""
    width = min(shutil.get_terminal_size((128, 24)).columns, _WIDEST)
    if arguments.name is None:
        print(list_kind(arguments.kind, width))
    else:
        print(list_name(arguments.kind, arguments.name, width))
    return 0
