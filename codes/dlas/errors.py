"""Errors meant for the user: each says what was found, what was expected and what to do. No traceback is shown for them."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong and the message says how to mend it. Ends the process with `exit_code`."""

    exit_code = 1


class ConfigurationError(UserError):
    """The YAML file or the command line is wrong: exit status 2."""

    exit_code = 2


class DataError(UserError):
    """A data set or one of its files is unusable."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or belongs to another network."""


class TrainingError(UserError):
    """The run cannot go on (for instance a loss that is not finite)."""


class MissingPackageError(UserError):
    """An optional package is needed."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        how = f"pip install 'dlas[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package '{package}', which cannot be imported here. Install it: {how}")


def printable(text: object) -> str:
    """Text on one line that any terminal and file takes: line breaks, control characters and undecodable bytes as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
