"""`dlas convert unswitch`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "put plain convolutions in the place of a network's switched ones"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("network", metavar="NETWORK", help="as for `dlas upscale`: a file, a run, a checkpoint")
    parser.add_argument(
        "--kernel",
        metavar="WHICH",
        help="which kernel stays where they differ: 'most_used' (by the memory of the norm), 'mean', or a number from 0",
    )
    parser.add_argument("--of", metavar="NAME", help="which network of a run, where it has several")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="safetensors file to write")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    from dlas.inference.model import find
    from dlas.inference.switching import unswitch

    found = find(arguments.network, arguments.of)
    layers = unswitch(found, arguments.kernel, Path(arguments.output))
    print(f"{arguments.output}: {len(layers)} switched convolutions of {found.source} made plain")
    return 0
