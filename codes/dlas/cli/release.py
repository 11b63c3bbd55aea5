"""`dlas release`."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a training run, or of one of its checkpoints")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of the weights")
    parser.add_argument("--name", help="of the file; by default the run's")
    parser.add_argument("--network", metavar="NAME", help="which network of the run")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files and names them."""
    from dlas.inference.release import release

    options = {"precision": arguments.precision, "name": arguments.name, "network": arguments.network}
    done = release(Path(arguments.run), Path(arguments.output), **options)
    for path in (done.weights, done.card, done.sheet):
        if path is not None:
            print(path)
    if done.sheet is None:
        print("no comparison sheet: the run has no validation pictures, or they are not where they were")
    return 0
