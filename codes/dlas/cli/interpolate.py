"""`dlas interpolate`."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("first", metavar="A", help="a network, as for `dlas upscale`: for instance trained for PSNR")
    parser.add_argument("second", metavar="B", help="one of the same architecture: for instance trained from it with a GAN")
    parser.add_argument("--alpha", type=_share, default=0.5, metavar="X", help="share of B, 0 to 1 (0.5)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="safetensors file to write")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    from dlas.inference.model import find
    from dlas.inference.release import interpolate

    interpolate(find(arguments.first), find(arguments.second), arguments.alpha, Path(arguments.output))
    print(f"{arguments.output}: {1 - arguments.alpha:g} of {arguments.first}, {arguments.alpha:g} of {arguments.second}")
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value
