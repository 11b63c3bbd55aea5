"""`dlas convert whole`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "put a sharded checkpoint together: a safetensors file for each network, as other tools read them"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its folder, <run>/checkpoints/<step>")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="a new folder to write; a run can go on from it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder."""
    from dlas.engine import checkpoint
    from dlas.errors import ConfigurationError

    if arguments.output.exists():
        raise ConfigurationError(f"{arguments.output} is there already; name a new folder")
    snapshot = checkpoint.load(arguments.checkpoint)
    if not checkpoint.is_sharded(arguments.checkpoint):
        raise ConfigurationError(f"{arguments.checkpoint} is whole already: each of its safetensors files is a network's")
    checkpoint.write(arguments.output, snapshot)
    for file in sorted(arguments.output.glob("*.safetensors")):
        print(file)
    return 0
