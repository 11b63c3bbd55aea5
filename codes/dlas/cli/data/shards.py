"""`dlas data shards`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlas.cli.numbers import positive
from dlas.errors import ConfigurationError, printable

SUMMARY = "pack a folder into shards (tar as webdataset has it, or MDS), or make the indices of tar shards"
_MEGABYTE = 10**6


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("source", metavar="FOLDER", help="files to pack; with --index, shards like 'a/{00..99}.tar'")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder for the shards")
    parser.add_argument("--format", choices=("tar", "mds"), default="tar", help="tar (default), or mds of MosaicML streaming")
    parser.add_argument(
        "--size", type=positive, default=256, metavar="MB", help="most bytes of files in a shard, in 10^6 (256)"
    )
    parser.add_argument("--index", action="store_true", help="write an index beside each tar shard, so that runs start at once")


def run(arguments: argparse.Namespace) -> int:
    """Packs, and says what was made."""
    from dlas.data.shards import packing
    from dlas.data.shards.names import files_of

    if arguments.index:
        paths = files_of(str(Path(arguments.source).expanduser()))
        print(f"{packing.index(paths)} indices written for {len(paths)} shards")
        return 0
    if arguments.output is None:
        raise ConfigurationError("dlas data shards FOLDER needs -o OUT, a folder for the shards (or --index)")
    folder = Path(arguments.source).expanduser()
    try:
        packed = packing.pack(folder, arguments.output.expanduser(), arguments.format, arguments.size * _MEGABYTE)
    except KeyboardInterrupt:
        print("stopped; the same call goes on where it was", file=sys.stderr)
        return 130
    new = f"{packed.made} of them new" if packed.made else "all of which were there"
    print(f"{packed.files} files of {packed.samples} samples in {packed.shards} shards, {new}; {printable(arguments.output)}")
    return 0
