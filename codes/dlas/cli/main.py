"""The command line: `dlas COMMAND`, and what train.py and test.py call.

One file a command; each offers `arguments(parser)`, which declares them, and `run(arguments) -> exit status`. torch is imported
only by the commands that need it, when they run.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from dlas.errors import UserError

EXIT_CODES = (
    "exit status: 0 done; 1 the run failed; 2 the file or the arguments are wrong; 128+n stopped by signal n after saving"
)
# What files and disks can do to any program: a message tells it, and no traceback is needed.
_OF_THE_SYSTEM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG),
)
COMMANDS = {
    "train": "train what a YAML file describes",
    "test": "run and measure trained networks on images",
    "evaluate": "measure clips of speech: error rates, voices, opinion scores, distances",
    "upscale": "enlarge pictures and videos with a trained or published network",
    "speak": "say a text with TorToiSe's networks and a voice",
    "export": "write a network in another form: onnx",
    "release": "make a run ready for others: weights that say what they are, a page, a sheet",
    "interpolate": "write the network between two of the same architecture",
    "latent": "pictures in latent spaces: encode, decode, restore, transfer, interpolate, sweep (flows), project (StyleGAN2)",
    "statistics": "measure a set of pictures once, for metrics to compare with",
    "ema": "make an average of any width from the snapshots of a run",
    "check": "list what is wrong with a YAML file",
    "explain": "say in words and in a picture what a YAML file does",
    "data": "look at data sets and make them ready: audit, caption, encode, prepare, preview, shards, speech",
    "list": "list what is registered, or the options of one name",
    "replay": "run the step of a crash bundle again and say what goes wrong",
    "plan": "say on paper what a YAML file needs on many GPUs: memory, communication, data",
    "tune": "find the fastest settings for a YAML file by measuring them",
    "compare": "show what runs reached in which time, as a table and a picture",
    "convert": "change trained networks: switch, unswitch; put sharded checkpoints together: whole",
    "convert-config": "convert an option file of BasicSR or traiNNer-redux",
    "reference": "write the reference pages and the JSON schema of option files",
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name that the terminal cannot show must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = command.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped at once; the newest checkpoint is intact", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, for instance `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return 0
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; what was complete before is intact", file=sys.stderr)
        return 1
    return status


def entry_point() -> None:
    """Console script."""
    sys.exit(main())
