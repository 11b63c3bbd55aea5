"""`dlas statistics`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument(
        "--metric", required=True, metavar="NAME", help="whose features are measured, with its options in the file"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--dataset", metavar="KEY", help="data set of the file whose true pictures are measured (the first but train)"
    )
    which.add_argument("--pictures", type=Path, metavar="DIR", help="measure all pictures below a folder instead")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="safetensors file, or a folder in which it is named by the set",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    config = load(arguments.opt, arguments.set, mode=None)
    from dlas.engine.reference_sets import write_statistics
    from dlas.observe.console import start_console

    start_console()
    path, found = write_statistics(
        config, arguments.metric, arguments.output, dataset=arguments.dataset, folder=arguments.pictures
    )
    print(f"{path}: {found.pictures} pictures, set {found.set_hash[:16]}, {found.features}")
    return 0
