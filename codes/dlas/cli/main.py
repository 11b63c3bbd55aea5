"""The command line: `dlas COMMAND`, and what train.py and test.py call.

One file a command; each offers `arguments(parser)`, which declares them, and `run(arguments) -> exit status`. torch is imported
only by the commands that need it, when they run.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from dlas.errors import UserError

EXIT_CODES = (
    "exit status: 0 done; 1 the run failed; 2 the file or the arguments are wrong; 128+n stopped by signal n after saving"
)
COMMANDS = {
    "train": "train what a YAML file describes",
    "test": "run and measure trained networks on images",
    "check": "list what is wrong with a YAML file",
    "list": "list what is registered, or the options of one name",
    "convert-config": "convert an option file of BasicSR or traiNNer-redux",
}


def main(argv: Sequence[str] | None = None) -> int:
    """`dlas` and `python -m dlas`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:<15} {words}" for name, words in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="dlas",
        usage="dlas COMMAND ...",
        description=f"A config-driven trainer for generative models.\n\ncommands:\n{listing}",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="`dlas COMMAND --help` tells its arguments")
    return run_command(parser.parse_args(arguments[:1]).command, arguments[1:])


def run_command(name: str, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Parses a command's arguments and runs it.

    Args:
        name: of the command.
        argv: its arguments; those of the process by default.
        program: what to call it in its help.

    Returns:
        The exit status. Errors meant for the user become a message; faults of the program keep their traceback.
    """
    command = importlib.import_module(f"dlas.cli.{name.replace('-', '_')}")
    words = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=program or f"dlas {name}", description=f"{words[0].upper()}{words[1:]}.", epilog=EXIT_CODES
    )
    command.arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        status: int = command.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped at once by a second Ctrl-C; the newest checkpoint is intact", file=sys.stderr)
        return 130
    return status


def entry_point() -> None:
    """Console script."""
    sys.exit(main())
