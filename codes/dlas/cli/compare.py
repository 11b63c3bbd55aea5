"""`dlas compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.errors import ConfigurationError
from dlas.observe import curves


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("-o", dest="picture", type=Path, metavar="OUT.svg", help="also draw the curves into this file")
    parser.add_argument("--metric", help="figure of the validations, for instance psnr_y; the first one by default")
    parser.add_argument("--set", dest="set_name", metavar="NAME", help="data set; the first one validated on by default")
    parser.add_argument("--axis", choices=("seconds", "step", "samples"), default="seconds", help="along the picture")
    parser.add_argument("--log", action="store_true", help="logarithmic axis, for budgets that double (cyclic_tradeoff)")
    parser.add_argument(
        "--mode", choices=("max", "min"), help="whether more or less of the figure is better; known for registered metrics"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables, and draws the picture if asked to."""
    set_name, metric, found = curves.read_curves(arguments.runs, arguments.metric, arguments.set_name)
    higher = _higher(metric) if arguments.mode is None else arguments.mode == "max"
    from dlas.engine.dryrun.report import table

    print(f"{metric} of {set_name}, {'more' if higher else 'less'} is better\n{table(*curves.rows(found, higher))}")
    head, rows = curves.by_step(found)
    if len(found) > 1 and rows:
        print(f"\nat the steps that all have validated at\n{table(head, rows)}")
    if arguments.picture is not None:
        picture = curves.draw(found, f"{metric} of {set_name}", arguments.axis, arguments.log)
        try:
            arguments.picture.write_text(picture, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"-o {arguments.picture}: cannot be written: {error.strerror}") from error
    return 0


def _higher(metric: str) -> bool:
    from dlas.metrics import higher_is_better

    try:
        return higher_is_better(metric)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"whether more or less of '{metric}' is better is not known; add '--mode max' or 'min'"
        ) from error
