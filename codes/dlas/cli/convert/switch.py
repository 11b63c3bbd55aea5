"""`dlas convert switch`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "put switched convolutions in the place of a trained network's; its pictures stay as they are"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("network", metavar="NETWORK", help="as for `dlas upscale`: a file, a run, a checkpoint")
    parser.add_argument("--layers", nargs="+", required=True, metavar="NAME", help="as `networks.<name>.switched.layers`")
    parser.add_argument("--breadth", type=int, default=8, metavar="N", help="kernels of each layer (8)")
    parser.add_argument("--of", metavar="NAME", help="which network of a run, where it has several")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="safetensors file to write")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    from dlas.inference.model import find
    from dlas.inference.switching import switch

    found = find(arguments.network, arguments.of)
    layers = switch(found, arguments.layers, arguments.breadth, Path(arguments.output))
    print(f"{arguments.output}: {len(layers)} convolutions of {found.source} with {arguments.breadth} kernels each:")
    print("  " + "\n  ".join(layers))
    return 0
