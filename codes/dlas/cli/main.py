"""The command line: parses arguments and calls one function. torch is imported only by the commands that need it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dlas.config import check, load
from dlas.errors import UserError
from dlas.registry import REGISTRIES, yaml_name

EXIT_CODES = (
    "exit status: 0 done; 1 the run failed; 2 the file or the arguments are wrong; 128+n stopped by signal n after saving"
)


def main_train(argv: Sequence[str] | None = None) -> int:
    """`train.py` and `dlas train`."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train what a YAML file describes.", epilog=EXIT_CODES)
    _add_file_arguments(parser)
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the newest complete checkpoint of the run, if there is one; never: set an older run aside",
    )
    return _guarded(_train, parser.parse_args(argv))


def main_test(argv: Sequence[str] | None = None) -> int:
    """`test.py` and `dlas test`."""
    parser = argparse.ArgumentParser(
        prog="test.py", description="Run and measure trained networks on images.", epilog=EXIT_CODES
    )
    _add_file_arguments(parser)
    return _guarded(_test, parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """`dlas` and `python -m dlas`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="dlas", description="A config-driven trainer for generative models.", epilog=EXIT_CODES
    )
    parser.add_argument("command", choices=("train", "test", "check", "list"), help="see `dlas COMMAND --help`")
    command = parser.parse_args(arguments[:1]).command
    rest = arguments[1:]
    if command == "train":
        return main_train(rest)
    if command == "test":
        return main_test(rest)
    return _main_check(rest) if command == "check" else _main_list(rest)


def entry_point() -> None:
    """Console script."""
    sys.exit(main())


def _add_file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-opt", required=True, type=Path, metavar="FILE", help="YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override an entry, for instance --set train.niter=100 (may be repeated)",
    )


def _train(arguments: argparse.Namespace) -> int:
    config = load(arguments.opt, arguments.set)
    from dlas.engine.trainer import Trainer
    from dlas.observe.console import start_console

    start_console()
    result = Trainer(config, resume=arguments.resume, source=arguments.opt).run()
    return 128 + result.stopped_by if result.stopped_by is not None else 0


def _test(arguments: argparse.Namespace) -> int:
    config = load(arguments.opt, arguments.set, mode="test")
    from dlas.engine.testing import format_table, run_test
    from dlas.observe.console import start_console

    start_console()
    for name, result in run_test(config).items():
        print(f"\n{name}: {len(result.pictures)} pictures in {result.folder}")
        if result.means:
            print(format_table(result))
    return 0


def _main_check(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dlas check", description="List what is wrong with a YAML file.", epilog=EXIT_CODES)
    _add_file_arguments(parser)
    parser.add_argument("--mode", choices=("train", "test"), default="train", help="what the file is for")
    return _guarded(_check, parser.parse_args(argv))


def _check(arguments: argparse.Namespace) -> int:
    problems = check(arguments.opt, arguments.set, arguments.mode)
    for problem in problems:
        print(problem)
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{arguments.opt}: {errors} error{'s' * (errors != 1)}, {len(problems) - errors} warnings and notices")
    return 2 if errors else 0


def _main_list(argv: Sequence[str]) -> int:
    kinds = {registry.symbol.lower(): registry for registry in REGISTRIES}
    parser = argparse.ArgumentParser(prog="dlas list", description="List what is registered, or the options of one name.")
    parser.add_argument("kind", choices=sorted(kinds))
    parser.add_argument("name", nargs="?", help="show the options of this one")
    arguments = parser.parse_args(argv)

    def show(arguments: argparse.Namespace) -> int:
        registry = kinds[arguments.kind]
        if arguments.name is None:
            for name, entry in registry.entries().items():
                print(f"{name:<28} {entry.doc.partition(chr(10))[0]}")
            return 0
        entry = registry.find(arguments.name)
        print(f"{entry.name} ({entry.source}.{entry.attribute})\n\n{entry.doc}\n")
        for parameter in entry.parameters:
            default = "required" if parameter.required else f"default {parameter.default!r}"
            print(f"  {yaml_name(parameter.name):<24} {parameter.annotation}, {default}")
        return 0

    return _guarded(show, arguments)


def _guarded(action: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Turns errors meant for the user into a message and an exit status; faults of the program keep their traceback."""
    try:
        return action(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped at once by a second Ctrl-C; the newest checkpoint is intact", file=sys.stderr)
        return 130
