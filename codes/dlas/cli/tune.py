"""`dlas tune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.cli.file_arguments import add_file_arguments
from dlas.config import load
from dlas.errors import ConfigurationError

_AXES = ("micro", "precision", "format", "compile", "workers")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_file_arguments(parser)
    parser.add_argument(
        "-o",
        dest="output",
        type=Path,
        metavar="OUT.yml",
        help="file to write, which includes FILE and overrides what was tuned; FILE's name with .tuned.yml by default. The "
        "measurements are kept beside it, in OUT.json, and a search that was stopped goes on from them",
    )
    parser.add_argument(
        "--vary",
        default=",".join(_AXES),
        metavar="LIST",
        help=f"what may change, of {', '.join(_AXES)} (all by default); another precision changes results a little",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="what takes longer to compile is left as it is (default 600; compiling is looked at last but workers)",
    )
    parser.add_argument("--rounds", type=int, default=8, help="times that each setting is measured (default 8)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a measurement (default 2)")
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="memory that tensors may take; 90 %% of what there is by default"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables and writes the file."""
    vary = [each for each in arguments.vary.split(",") if each]
    unknown = [each for each in vary if each not in _AXES]
    if unknown:
        raise ConfigurationError(f"--vary: '{unknown[0]}' is not known; there are: {', '.join(_AXES)}")
    if (
        arguments.rounds < 2
        or min(arguments.seconds, arguments.patience) <= 0
        or (arguments.memory is not None and arguments.memory <= 0)
    ):
        raise ConfigurationError("--rounds must be 2 or more, --seconds, --patience and --memory positive")
    output = arguments.output or arguments.opt.with_suffix(".tuned.yml")
    if output.resolve() == arguments.opt.resolve():
        raise ConfigurationError(f"-o {output}: this is the option file itself; give another name")
    config = load(arguments.opt, arguments.set)
    from dlas.engine.tuning import Plan, tune
    from dlas.engine.tuning.report import render, write_include

    memory = int(arguments.memory * 1e9) if arguments.memory else None
    plan = Plan(arguments.rounds, arguments.seconds, vary, memory, arguments.patience)
    found = tune(config, plan, output.with_suffix(".json"), lambda words: print(words, flush=True))
    write_include(output, arguments.opt, found)
    overrides = "".join(f" --set {each}" for each in arguments.set)
    print(f"\n{render(found, config.datasets['train'].batch_size)}\n\nWritten: {output}. Train with it:")
    print(f"  dlas train -opt {output}{overrides}")
    return 0
