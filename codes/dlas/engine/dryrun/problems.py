"""From exceptions to problems with a place in the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from dlas.config.problems import Problem, in_order
from dlas.config.schema import Section
from dlas.errors import UserError

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""Raised where tracing must stop although nothing is wrong."""


class SkippedError(Exception):
    """Something was not run because it reads what could not be written; the reason has been noted before."""


@dataclass
class Attempt:
    """How a block under `ProblemList.noting` ended."""

    succeeded: bool = False


class ProblemList:
    """Collects problems, one for each section of the file: the first."""

    def __init__(self) -> None:
        self._found: dict[str, Problem] = {}

    @property
    def in_order(self) -> list[Problem]:
        """All problems in the order of the file's lines."""
        return in_order(list(self._found.values()))

    def note(self, section: Section, problem: Problem) -> None:
        """Notes a problem unless the section has one already."""
        self._found.setdefault(section.yaml_path, problem)

    @contextlib.contextmanager
    def noting(self, section: Section, read: Mapping[str, Any] | None = None, where: str = "") -> Iterator[Attempt]:
        """Within the block, every exception becomes a problem of the section.

        Args:
            section: part of the file that the block runs.
            read: the state entries that it has read, for the message; may be filled within the block.
            where: what ran, for messages of errors that do not say.
        """
        attempt = Attempt()
        try:
            yield attempt
        except SkippedError:
            return
        except NEEDS_VALUES as error:
            message = (
                f"{where}cannot be traced without data: {_operator(error)} gives a result that depends on values; what follows "
                "from it was not checked, and the forecasts leave it out"
            )
            self.note(section, Problem(section.mark, section.yaml_path, message, severity="warning"))
            return
        except Exception as error:  # a fault of a plug-in is to be reported like one of the file, beside all others
            message = _message(error, section)
            entries = ", ".join(f"{key}: {describe(value)}" for key, value in (read or {}).items())
            if entries and not all(f"{key}: {describe(value)}" in message for key, value in (read or {}).items()):
                message += f" [read: {entries}]"
            self.note(section, Problem(section.mark, section.yaml_path, where + message))
            return
        attempt.succeeded = True


def describe(value: Any) -> str:
    """A state entry in words: type and shape of a tensor, `[...]` for lists, the value itself for anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        items = [describe(item) for item in value[:3]] + (["..."] if len(value) > 3 else [])
        return f"[{', '.join(items)}]"
    return repr(value)


def _message(error: Exception, section: Section) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, UserError | ValueError):
        for repeated in (f"{section.mark}: ", f"{section.yaml_path}: "):
            text = text.removeprefix(repeated)
        return text
    return f"{type(error).__name__}: {text}"


def _operator(error: Exception) -> str:
    return str(getattr(error, "func", None) or error)
