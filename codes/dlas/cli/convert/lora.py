"""`dlas convert lora`."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "merge a network's low-rank adapters into its weights, or write the adapters alone"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("network", metavar="NETWORK", help="a run, a checkpoint, or a file of adapters")
    parser.add_argument("--base", metavar="FILE", help="for a file of adapters: the weights that they were trained on")
    parser.add_argument("--adapters", action="store_true", help="write what was trained alone, a small file")
    parser.add_argument("--of", metavar="NAME", help="which network of a run, where it has several")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="safetensors file to write")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    from dlas.inference.adapters import with_base, write_adapters, write_merged
    from dlas.inference.model import Found, find
    from dlas.interop.state_dicts import read_state_dict

    found = find(arguments.network, arguments.of)
    if arguments.base is not None:
        found = with_base(found, Found(found.options, read_state_dict(arguments.base), arguments.base))
    if arguments.adapters:
        count = write_adapters(found, Path(arguments.output))
        print(f"{arguments.output}: the adapters of {found.source}, {count:,} numbers")
        return 0
    layers = write_merged(found, Path(arguments.output))
    print(f"{arguments.output}: {found.source} with the adapters of {len(layers)} layers merged into its weights")
    return 0
