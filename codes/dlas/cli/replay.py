"""`dlas replay`."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("bundle", type=Path, help="crash bundle: a folder experiments/<run>/crashes/<iteration>-<step>")
    parser.add_argument("--device", help="where to run it (cpu, cuda, mps); by default where the run was")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="compute in this precision, to see whether the fault depends on it",
    )
    parser.add_argument(
        "--anomaly", action="store_true", help="let autograd name the operation whose gradient is nan, with its forward call"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints what happens when the step runs again."""
    from dlas.engine.replay import replay

    print(replay(arguments.bundle, arguments.device, arguments.precision, arguments.anomaly).text())
    return 0
