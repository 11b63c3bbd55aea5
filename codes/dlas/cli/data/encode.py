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


def run(arguments: argparse.Namespace) -> int:
    """Encodes, and says what became of each data set."""
    try:
        return _encode(arguments)
    except KeyboardInterrupt:
        print("stopped; the same call goes on where it was", file=sys.stderr)
        return 130


def _encode(arguments: argparse.Namespace) -> int:
    config = load(arguments.opt, arguments.set)
    from dlas.engine.encoding import encode_data_sets
    from dlas.observe.console import progress_bar

    with ExitStack() as stack:

        def starting(key: str, total: int) -> Callable[[int], None]:
            print(f"{key}: {total} samples")
            bar = stack.enter_context(progress_bar(total, 0))
            return lambda count: bar.update(count) and None

        results = encode_data_sets(config, overwrite=arguments.overwrite, starting=starting)
    for result in results:
        for path, reason in result.bad_files.items():
            print(f"left out {printable(path)}: {reason}", file=sys.stderr)
        done = f"{result.made} samples encoded" if result.made else "nothing to do: all of it is there"
        print(f"{result.key}: {done}; {printable(result.folder)}")
    return 0
