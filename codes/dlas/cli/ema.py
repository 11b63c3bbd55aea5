"""`dlas ema`."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a run with 'train.ema.post_hoc'")
    parser.add_argument(
        "--width", type=float, required=True, metavar="W", help="relative width, 0 to 0.28: 0.05 is a short average"
    )
    parser.add_argument("--network", default="generator", metavar="NAME", help="whose average (generator)")
    parser.add_argument("--step", type=int, metavar="N", help="at which step of the run (that of the last snapshot)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="safetensors file to write")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    from safetensors.torch import save

    from dlas.data.images.files import write_whole
    from dlas.engine.post_hoc import reconstruct
    from dlas.errors import ConfigurationError

    try:
        tensors, step = reconstruct(Path(arguments.run), arguments.network, arguments.width, arguments.step)
    except ValueError as error:
        raise ConfigurationError(f"--width: {error}") from error
    write_whole(Path(arguments.output), save(tensors))
    print(f"{arguments.output}: '{arguments.network}' averaged with relative width {arguments.width:g} up to step {step}")
    return 0
