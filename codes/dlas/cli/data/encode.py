"""`dlas data encode`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load
from dlas.errors import printable

SUMMARY = "run frozen networks over a data set once and keep what they give: latents, embeddings of texts"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="encode anew what was encoded with other weights or options")
    parser.add_argument(
        "--share",
        type=_share,
        metavar="K/N",
        help="encode the K-th of N shares, K from 0, beside other such calls; by default what torchrun or SLURM says",
    )


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"expected K/N with K from 0 to N - 1, like 0/4; got {text}")
    return int(number), int(count)


def run(arguments: argparse.Namespace) -> int:
    """Encodes, and says what became of each data set."""
    try:
        return _encode(arguments)
    except KeyboardInterrupt:
        print("stopped; the same call goes on where it was", file=sys.stderr)
        return 130


def _encode(arguments: argparse.Namespace) -> int:
    config = load(arguments.opt, arguments.set)
    from dlas.data.latents.store import Share
    from dlas.engine.distributed.launch import find_launch, local_device
    from dlas.engine.encoding import encode_data_sets
    from dlas.observe.console import progress_bar

    launch = find_launch("auto")
    share = Share(*(arguments.share or (launch.rank, launch.world_size)))
    if launch.world_size > 1:
        config.device = local_device(config, launch.local_rank)
    with ExitStack() as stack:

        def starting(key: str, total: int) -> Callable[[int], None]:
            print(f"{key}: {total} samples")
            bar = stack.enter_context(progress_bar(total, 0))
            return lambda count: bar.update(count) and None

        results = encode_data_sets(config, overwrite=arguments.overwrite, starting=starting, share=share)
    for result in results:
        for path, reason in result.bad_files.items():
            print(f"left out {printable(path)}: {reason}", file=sys.stderr)
        done = f"{result.made} samples encoded" if result.made else "nothing to do: all of it is there"
        rest = "" if result.complete else "; other shares are not there yet"
        print(f"{result.key}: {done}{rest}; {printable(result.folder)}")
    return 0
