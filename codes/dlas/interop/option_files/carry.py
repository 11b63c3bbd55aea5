"""Taking keys out of a file one by one, so that what is left over is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dlas.config.source import Mark, MarkedDict, plain
from dlas.config.typespec import shown
from dlas.errors import ConfigurationError


@dataclass(frozen=True)
class Uncarried:
    """A key that has no counterpart: its path, value, place, and why."""

    path: str
    value: Any
    mark: Mark
    reason: str

    def __str__(self) -> str:
        text = as_yaml(self.value)
        return f"{self.path}: {text if len(text) <= 60 else text[:57] + '...'} (line {self.mark.line}): {self.reason}"


def as_yaml(value: Any) -> str:
    """A value as it stands in one line of YAML."""
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return yaml.safe_dump(plain(value), default_flow_style=True, sort_keys=False, width=10_000).removesuffix("\n...\n").strip()


@dataclass(frozen=True)
class Taken:
    """A value with the place of its key."""

    value: Any
    mark: Mark
    path: str


class Source:
    """A file that is being converted. What is taken is removed."""

    def __init__(self, tree: MarkedDict) -> None:
        self.tree = tree
        self.uncarried: list[Uncarried] = []
        self.unneeded: list[Uncarried] = []

    def section(self, path: str) -> MarkedDict | None:
        """The mapping at a path."""
        holder: Any = self.tree
        for name in filter(None, path.split(".")):
            holder = holder.get(name) if isinstance(holder, dict) else None
        return holder if isinstance(holder, MarkedDict) else None

    def mark(self, path: str) -> Mark | None:
        """Where an entry stands; None if it is not there."""
        parent, _, key = path.rpartition(".")
        holder = self.section(parent)
        return None if holder is None else holder.key_marks.get(key)

    def take(self, path: str) -> Taken | None:
        """Removes and returns an entry; None if it is not there."""
        parent, _, key = path.rpartition(".")
        holder = self.section(parent)
        if holder is None or key not in holder:
            return None
        value, mark, _ = holder.take(key)
        return Taken(value, mark, path)

    def value(self, path: str, default: Any = None) -> Any:
        """Removes and returns a value; the default if there is none, or nothing (`~`)."""
        taken = self.take(path)
        return default if taken is None or taken.value is None else taken.value

    def number(self, path: str, default: float | None = None) -> Any:
        """Removes and returns a number.

        Raises:
            ConfigurationError: it is something else.
        """
        taken = self.take(path)
        if taken is None or taken.value is None:
            return default
        if isinstance(taken.value, bool) or not isinstance(taken.value, int | float):
            raise ConfigurationError(f"{taken.mark}: {path}: expected a number, found {shown(taken.value)}")
        return taken.value

    def lose(self, path: str, reason: str, neutral: tuple[Any, ...] = (None,)) -> None:
        """Removes an entry that cannot be carried; a value in `neutral` asks for nothing."""
        taken = self.take(path)
        if taken is not None and taken.value not in neutral:
            self.uncarried.append(Uncarried(path, taken.value, taken.mark, reason))

    def spare(self, path: str, reason: str) -> None:
        """Removes an entry that is not needed here."""
        taken = self.take(path)
        if taken is not None:
            self.unneeded.append(Uncarried(path, taken.value, taken.mark, reason))

    def put_back(self, taken: Taken | None, reason: str) -> None:
        """Something taken turns out not to be carried."""
        if taken is not None:
            self.uncarried.append(Uncarried(taken.path, taken.value, taken.mark, reason))

    def rest(self) -> list[Uncarried]:
        """Every entry that nothing took."""
        return [Uncarried(path, value, mark, "has no counterpart here") for path, value, mark in _leaves(self.tree, "")]


class Target:
    """The file that is being made: nested mappings, each entry with the place that it came from."""

    def __init__(self) -> None:
        self.tree = MarkedDict(Mark(""))

    def put(self, path: str, value: Any, mark: Mark | None = None) -> None:
        """Sets an entry, making the mappings on the way."""
        *parents, last = path.split(".")
        holder = self.tree
        for name in parents:
            if name not in holder:
                holder.put(name, MarkedDict(Mark("")), Mark(""))
            holder = holder[name]
        holder.put(last, value, mark or Mark(""))

    def carry(self, taken: Taken | None, path: str) -> None:
        """Sets an entry to what was taken; nothing if there was nothing."""
        if taken is not None and taken.value is not None:
            self.put(path, taken.value, taken.mark)

    def mark(self, path: str, mark: Mark | None) -> None:
        """Says where a mapping came from."""
        parent, _, key = path.rpartition(".")
        holder: Any = self.tree
        for name in filter(None, parent.split(".")):
            holder = holder.get(name, {})
        if key in holder and mark is not None:
            holder.key_marks[key] = mark


def _leaves(node: MarkedDict, path: str) -> Iterator[tuple[str, Any, Mark]]:
    for key, value in node.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, MarkedDict):
            yield from _leaves(value, inner)
        else:
            yield inner, value, node.key_marks[key]
