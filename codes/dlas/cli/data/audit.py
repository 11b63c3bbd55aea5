"""`dlas data audit`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load

SUMMARY = "open every file of a YAML file's data sets once and say what is wrong with it"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument("--mode", choices=("train", "test"), help="what the YAML file is for; by default what it looks like")
    parser.add_argument("--report", type=Path, metavar="OUT", help="also write all findings into this .json or .csv file")
    parser.add_argument("--workers", type=_count, metavar="N", help="processes that read; by default one for each CPU")
    parser.add_argument("--examples", type=_count, default=5, metavar="N", help="files shown of each kind of finding")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings. Returns 1 if there are errors among them."""
    try:
        return _audit(arguments)
    except KeyboardInterrupt:
        print("stopped; no report was written", file=sys.stderr)
        return 130


def _audit(arguments: argparse.Namespace) -> int:
    config = load(arguments.opt, arguments.set, arguments.mode)
    from dlas.data.audit import audit, render, write_report
    from dlas.data.audit.report import check_report_path
    from dlas.engine.inventories import inventories
    from dlas.observe.console import progress_bar

    if arguments.report is not None:
        check_report_path(arguments.report)
    named = inventories(config)
    total = sum(len(each.inventory.items) for each in named if each.inventory is not None)
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    with progress_bar(total, 0) as bar:
        result = audit(named, workers, bar.update)
    if arguments.report is not None:
        write_report(result, arguments.report)
    print(render(result, arguments.examples))
    return 1 if result.count("error") else 0


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {value}")
    return value
