"""A fault in a configuration, with its place and its mending."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dlas.config.source import Mark

Severity = Literal["error", "warning", "notice"]


@dataclass(frozen=True)
class Problem:
    """One fault.

    Args:
        mark: where it stands.
        path: YAML path of the entry (`networks.generator.nf`), empty for the whole file.
        message: what is wrong: what was given and what is expected.
        fix: what to do, where that is known.
        severity: an `error` stops the run, a `warning` is shown, a `notice` tells of a translated older spelling.
    """

    mark: Mark
    path: str
    message: str
    fix: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        where = f"{self.mark}: " + ("" if self.severity == "error" else f"{self.severity}: ")
        subject = f"{self.path}: " if self.path else ""
        return f"{where}{subject}{self.message}" + (f"; {self.fix}" if self.fix else "")


def in_order(problems: list[Problem]) -> list[Problem]:
    """Sorted by file and line, without repetitions."""
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda p: (p.mark.file, p.mark.line, p.mark.column, p.path))
