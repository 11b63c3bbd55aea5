"""`dlas plan`."""

from __future__ import annotations

import argparse

from dlas.cli.file_arguments import add_file_arguments
from dlas.cli.numbers import not_negative, positive
from dlas.config import load

_STRATEGIES = ("ddp", "zero1", "zero2", "fsdp")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("--cluster", default="8xh100", metavar="NAME", help="GPUs of a machine, like 8xa100 (8xh100)")
    parser.add_argument("--gpus", type=_counts, default=[1, 8, 64, 512], metavar="N,...", help="how many in all (1,8,64,512)")
    parser.add_argument("--strategies", type=_strategies, default=["ddp", "fsdp"], metavar="S,...", help=", ".join(_STRATEGIES))
    parser.add_argument("--link", type=not_negative, metavar="GB/s", help="of a GPU to those of its machine, one direction")
    parser.add_argument("--network", type=not_negative, metavar="GB/s", help="of a machine to the others, one direction")
    parser.add_argument("--shared-batch", action="store_true", help="all GPUs share the file's batch; else each has one")
    parser.add_argument("--gather-bf16", action="store_true", help="fsdp sends weights with 16 bits (gather_dtype: bf16)")
    parser.add_argument("--sample-bytes", type=not_negative, metavar="N", help="read from disk for each sample")
    parser.add_argument("--sample-ms", type=not_negative, metavar="MS", help="of a processor core for each sample")


def _counts(text: str) -> list[int]:
    return [positive(each) for each in text.split(",")]


def _strategies(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [each for each in chosen if each not in _STRATEGIES]:
        raise argparse.ArgumentTypeError(f"no strategy is called {unknown[0]}; known: {', '.join(_STRATEGIES)}")
    return chosen


def run(arguments: argparse.Namespace) -> int:
    """Prints the table."""
    config = load(arguments.opt, arguments.set)
    from dlas.engine.dryrun import dry_run
    from dlas.engine.scaling import Workload, find_cluster, plan, render

    cluster = find_cluster(arguments.cluster, arguments.link, arguments.network)
    work = Workload.of(dry_run(config, cluster.device), config.datasets["train"].batch_size)
    rows = [
        plan(work, cluster, gpus, strategy, 2 if arguments.gather_bf16 else 4, arguments.shared_batch)
        for gpus in arguments.gpus
        for strategy in arguments.strategies
        if (gpus > 1 or strategy == arguments.strategies[0]) and not (arguments.shared_batch and work.samples % gpus)
    ]
    milliseconds = arguments.sample_ms
    print(render(work, cluster, rows, arguments.sample_bytes, None if milliseconds is None else milliseconds / 1e3))
    return 0
