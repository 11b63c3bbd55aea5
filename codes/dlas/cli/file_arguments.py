"""The arguments that every command on a YAML file takes."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `-opt FILE` and `--set KEY=VALUE`."""
    parser.add_argument("-opt", required=True, type=Path, metavar="FILE", help="YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an entry, for instance --set train.niter=100 (may be repeated)",
    )
