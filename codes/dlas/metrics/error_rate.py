"""How far a text is from what it should be."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation: letters and digits, with apostrophes between them."""
    return [word.replace("\u2019", "'") for word in _WORD.findall(text.lower())]


@dataclass(frozen=True)
class Errors:
    """Differences between texts, and the length of those that are right.

    Args:
        substituted: entries in place of others.
        deleted: entries that are missing.
        inserted: entries too many.
        length: entries of the right texts.
    """

    substituted: int = 0
    deleted: int = 0
    inserted: int = 0
    length: int = 0

    @property
    def rate(self) -> float:
        """Differences over length; above 1 where much is too much. 0 for nothing in place of nothing."""
        wrong = self.substituted + self.deleted + self.inserted
        return wrong / self.length if self.length else float("inf") if wrong else 0.0

    def __add__(self, other: Self) -> Errors:
        return Errors(
            self.substituted + other.substituted,
            self.deleted + other.deleted,
            self.inserted + other.inserted,
            self.length + other.length,
        )


def differences(right: Sequence[Hashable], found: Sequence[Hashable]) -> Errors:
    """The fewest substitutions, deletions and insertions that make one sequence of another.

    Where several ways are as short, the one with the most substitutions is taken.

    Args:
        right: what it should be, of N entries.
        found: what it is, of M entries; time and memory are N M.

    Source: Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals", 1966; the way through the
    table by Wagner and Fischer, 1974.
    """
    numbers: dict[Hashable, int] = {}
    rows, columns = (np.array([numbers.setdefault(each, len(numbers)) for each in side], int) for side in (right, found))
    along = np.arange(len(columns) + 1)
    table = np.empty((len(rows) + 1, len(columns) + 1), int)
    table[0] = along
    for number, row in enumerate(rows, 1):
        above = table[number - 1]
        best = np.concatenate([[number], np.minimum(above[1:] + 1, above[:-1] + (columns != row))])
        # Insertions go along the row: the least of all entries before, each with as many steps as lie between.
        table[number] = np.minimum.accumulate(best - along) + along
    substituted = deleted = inserted = 0
    i, j = len(rows), len(columns)
    while i or j:
        changed = int(i > 0 and j > 0 and rows[i - 1] != columns[j - 1])
        if i and j and table[i, j] == table[i - 1, j - 1] + changed:
            substituted, i, j = substituted + changed, i - 1, j - 1
        elif i and table[i, j] == table[i - 1, j] + 1:
            deleted, i = deleted + 1, i - 1
        else:
            inserted, j = inserted + 1, j - 1
    return Errors(substituted, deleted, inserted, len(rows))


def word_errors(right: str, found: str) -> Errors:
    """In words."""
    return differences(words(right), words(found))


def character_errors(right: str, found: str) -> Errors:
    """In characters, with one blank between words."""
    return differences(" ".join(words(right)), " ".join(words(found)))
