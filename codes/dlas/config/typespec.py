"""Types of options, read from the text of an annotation (`list[int] | None`), and the conversion of YAML values to them.

Working on text keeps the checker free of the modules that hold the components: nothing is imported to check a file.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dlas.config.problems import Problem, Severity
from dlas.config.source import UNREADABLE, Mark
from dlas.registry import nearest


class _Invalid:
    def __repr__(self) -> str:
        return "<invalid>"


INVALID: Any = _Invalid()
"""Returned in place of a value that does not fit; the problem has been noted."""


@dataclass
class Cursor:
    """A place in the tree that is being checked, and where problems are noted."""

    mark: Mark
    path: str = ""
    problems: list[Problem] = field(default_factory=list)

    def key(self, container: Mapping[str, Any], key: str) -> Cursor:
        """The place of an entry's key."""
        return self._at(getattr(container, "key_marks", {}).get(key), f"{self.path}.{key}" if self.path else key)

    def value(self, container: Mapping[str, Any], key: str) -> Cursor:
        """The place of an entry's value."""
        return self._at(getattr(container, "value_marks", {}).get(key), f"{self.path}.{key}" if self.path else key)

    def item(self, container: list[Any], position: int) -> Cursor:
        """The place of an item of a list."""
        marks = getattr(container, "marks", [])
        return self._at(marks[position] if position < len(marks) else None, f"{self.path}[{position}]")

    def note(self, message: str, fix: str = "", severity: Severity = "error") -> Any:
        """Notes a problem here and returns INVALID."""
        self.problems.append(Problem(self.mark, self.path, message, fix, severity))
        return INVALID

    def scratch(self) -> Cursor:
        """The same place with a list of problems of its own, for trying."""
        return Cursor(self.mark, self.path)

    def _at(self, mark: Mark | None, path: str) -> Cursor:
        return Cursor(mark or self.mark, path, self.problems)


@dataclass(frozen=True)
class Spec:
    """A type: how it is called in messages, how a value is brought into it, and of which shape (dict, list) it is."""

    description: str
    convert: Callable[[Any, Cursor], Any]
    shape: type | None = None


def shown(value: Any) -> str:
    """A value as it is quoted in messages."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list of mappings" if value and isinstance(value[0], dict) else f"the list {list(value)!r}"[:80]
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    return f"the text '{_short(value)}'" if isinstance(value, str) else _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def mismatch(value: Any, cursor: Cursor, description: str, fix: str = "") -> Any:
    """Notes that a value is not what is expected, unless it could not even be read."""
    if value is UNREADABLE:
        return INVALID
    return cursor.note(f"expected {description}, found {shown(value)}", fix or _hint(value, description))


def _hint(value: Any, description: str) -> str:
    if isinstance(value, str):
        if description.startswith("true or false") and value.lower() in ("on", "yes", "off", "no"):
            return f"write {'true' if value.lower() in ('on', 'yes') else 'false'}"
        if "number" in description and _NUMBER_WITH_COMMA.fullmatch(value):
            return f"write {value.replace(',', '.')}"
        if value == "None" and "nothing" in description:
            return "write null"
    if isinstance(value, list) and len(value) == 1 and "list" not in description and not isinstance(value[0], list | dict):
        return f"write {value[0]} without brackets"
    return ""


_NUMBER_WITH_COMMA = re.compile(r"-?\d+,\d+")


def _simple(description: str, fits: Callable[[Any], bool], change: Callable[[Any], Any] = lambda v: v) -> Spec:
    def convert(value: Any, cursor: Cursor) -> Any:
        return change(value) if fits(value) else mismatch(value, cursor, description)

    return Spec(description, convert)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return abs(value) < _LARGEST if isinstance(value, int) else isinstance(value, float) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer() and abs(value) < _LARGEST


_LARGEST = 1 << 63
_STATE_IN = "the name of a state key"

_NAMED: dict[str, Spec] = {
    "Any": _simple("a value", lambda v: True),
    "object": _simple("a value", lambda v: True),
    "None": _simple("nothing", lambda v: v is None),
    "bool": _simple("true or false", lambda v: isinstance(v, bool)),
    "str": _simple("text", lambda v: isinstance(v, str)),
    "int": _simple("a whole number", _is_whole, int),
    "float": _simple("a number", _is_number, float),
    "PositiveInt": _simple("a whole number of at least 1", lambda v: _is_whole(v) and v >= 1, int),
    "NonNegativeInt": _simple("a whole number of at least 0", lambda v: _is_whole(v) and v >= 0, int),
    "PositiveFloat": _simple("a number greater than 0", lambda v: _is_number(v) and v > 0, float),
    "NonNegativeFloat": _simple("a number of at least 0", lambda v: _is_number(v) and v >= 0, float),
    "Fraction": _simple("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1, float),
    "StateIn": _simple(_STATE_IN, lambda v: isinstance(v, str) and v != ""),
    "StateOut": _simple(_STATE_IN, lambda v: isinstance(v, str) and v != ""),
    "NetworkName": _simple("the name of a network", lambda v: isinstance(v, str)),
    "MetricName": _simple("the name of a metric", lambda v: isinstance(v, str)),  # the builder also looks it up
    "list": _simple("a list", lambda v: isinstance(v, list)),
    "dict": _simple("a mapping", lambda v: isinstance(v, dict)),
}


def _state_keys(item: Callable[[Any, Cursor], Any]) -> Spec:
    """A state key or a list whose entries are checked by `item`."""
    description = "a state key or a list of them"

    def convert(value: Any, cursor: Cursor) -> Any:
        if not isinstance(value, list):
            return value if isinstance(value, str) and value else mismatch(value, cursor, description)
        if not value:
            return cursor.note(f"expected {description}, found an empty list")
        for position, each in enumerate(value):
            item(each, cursor.item(value, position))
        return value

    return Spec(description, convert)


def _state_key_or_literal(value: Any, cursor: Cursor) -> Any:
    return (_NAMED["StateIns"] if isinstance(value, list) else _LITERAL).convert(value, cursor)


_LITERAL = _simple("a state key or a literal", lambda v: v is None or isinstance(v, str | int | float))
_NAMED["StateIns"] = _state_keys(_state_key_or_literal)
_NAMED["StateOuts"] = _state_keys(_NAMED["StateOut"].convert)


def _union(members: list[Spec]) -> Spec:
    description = " or ".join(m.description for m in members)

    def convert(value: Any, cursor: Cursor) -> Any:
        if value is None and _NAMED["None"] in members:  # and not a section with its defaults
            return None
        attempts = []
        for member in members:
            trial = cursor.scratch()
            result = member.convert(value, trial)
            if not trial.problems:
                return result
            if member.shape is not None and isinstance(value, member.shape):
                attempts.append(trial.problems)
        if len(attempts) == 1:  # the shape fits one member: its problems say more than "expected A or B"
            cursor.problems.extend(attempts[0])
            return INVALID
        return mismatch(value, cursor, description)

    return Spec(description, convert)


def _list(item: Spec) -> Spec:
    def convert(value: Any, cursor: Cursor) -> Any:
        if not isinstance(value, list):
            return mismatch(value, cursor, f"a list of {item.description}")
        converted = [item.convert(each, cursor.item(value, position)) for position, each in enumerate(value)]
        return [each for each in converted if each is not INVALID]

    return Spec(f"a list of {item.description}", convert, list)


def _mapping(item: Spec) -> Spec:
    def convert(value: Any, cursor: Cursor) -> Any:
        if not isinstance(value, dict):
            entries = isinstance(value, list) and any(isinstance(each, dict) for each in value)
            fix = "give each entry a name: '<name>: {...}', without '-'" if entries else ""
            return mismatch(value, cursor, "a mapping", fix)
        converted = {key: item.convert(each, cursor.value(value, key)) for key, each in value.items()}
        return {key: each for key, each in converted.items() if each is not INVALID}

    return Spec("a mapping" if item is _NAMED["Any"] else f"a mapping to {item.description}", convert, dict)


def _literal(values: list[Any]) -> Spec:
    description = "one of " + ", ".join(str(v) for v in values)

    def convert(value: Any, cursor: Cursor) -> Any:
        if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
            return value
        close = nearest(value, [v for v in values if isinstance(v, str)]) if isinstance(value, str) else None
        return mismatch(value, cursor, description, f"did you mean '{close}'?" if close else "")

    return Spec(description, convert)


def parse_type(text: str, named: Mapping[str, Spec] | None = None) -> Spec:
    """The type that an annotation's text stands for; names that are not known accept any value.

    Args:
        text: for instance ``Literal["a", "b"] | None``.
        named: further names, for instance sections of the configuration.
    """
    return _spec(ast.parse(text, mode="eval").body, {**_NAMED, **named}) if named else _parse_cached(text)


@cache
def _parse_cached(text: str) -> Spec:
    return _spec(ast.parse(text, mode="eval").body, _NAMED)


def _spec(node: ast.expr, named: Mapping[str, Spec]) -> Spec:
    if isinstance(node, ast.Name):
        return named.get(node.id, _NAMED["Any"])
    if isinstance(node, ast.Constant):
        return _NAMED["None"] if node.value is None else _spec(ast.parse(str(node.value), mode="eval").body, named)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(_flatten_union(node, named))
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        origin = node.value.id
        if origin == "Literal":
            return _literal([ast.literal_eval(each) for each in inner])
        if origin in ("list", "Sequence", "tuple"):
            return _list(_spec(inner[0], named))
        if origin in ("dict", "Mapping"):
            return _mapping(_spec(inner[1], named))
    return _NAMED["Any"]


def _flatten_union(node: ast.expr, named: Mapping[str, Spec]) -> list[Spec]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _flatten_union(node.left, named) + _flatten_union(node.right, named)
    return [_spec(node, named)]
