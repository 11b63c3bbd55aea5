"""`dlas explain`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load
from dlas.errors import ConfigurationError
from dlas.explain.mermaid import mermaid
from dlas.explain.picture import draw
from dlas.explain.words import explain


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("--mode", choices=("train", "test"), default="train", help="what the file is for")
    parser.add_argument("-o", dest="picture", type=Path, metavar="OUT.svg", help="also draw the run into this file")
    parser.add_argument("--mermaid", action="store_true", help="print the picture as Mermaid text, not the words")


def run(arguments: argparse.Namespace) -> int:
    """Prints the words or the Mermaid text, and writes the picture if asked to."""
    config = load(arguments.opt, arguments.set, arguments.mode)
    print(mermaid(config) if arguments.mermaid else explain(config, str(arguments.opt)), end="" if arguments.mermaid else "\n")
    if arguments.picture is not None:
        try:
            arguments.picture.write_text(draw(config), encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"-o {arguments.picture}: cannot be written: {error.strerror}") from error
    return 0
