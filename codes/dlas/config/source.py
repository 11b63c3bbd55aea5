"""YAML text -> plain Python values that remember where they stood, so that every later message can point at a line.

Differences from PyYAML's own loader, each closing a trap: `1e-4` is a float; only `true` and `false` are booleans; `012` is
twelve; a duplicate key is an error; no tag can build a Python object.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import Composer

from dlas.config.problems import Problem


@dataclass(frozen=True)
class Mark:
    """A place in a file, 1-based. `line` 0 means that the place is not in a file (the command line)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class MarkedDict(dict[str, Any]):
    """A mapping that knows where it, its keys and its values were written."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark
        self.key_marks: dict[str, Mark] = {}
        self.value_marks: dict[str, Mark] = {}

    def put(self, key: str, value: Any, key_mark: Mark, value_mark: Mark | None = None) -> None:
        """Sets an entry together with its place."""
        self[key] = value
        self.key_marks[key] = key_mark
        self.value_marks[key] = value_mark or key_mark

    def take(self, key: str) -> tuple[Any, Mark, Mark]:
        """Removes an entry and returns it with the places of its key and value."""
        return self.pop(key), self.key_marks.pop(key, self.mark), self.value_marks.pop(key, self.mark)


class MarkedList(list[Any]):
    """A sequence that knows where it and its items were written."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self.mark = mark
        self.marks: list[Mark] = []


class _Unreadable:
    def __repr__(self) -> str:
        return "<unreadable>"


UNREADABLE: Any = _Unreadable()
"""Stands for a value that could not be read; the problem has been noted."""


def plain(value: Any) -> Any:
    """The same value in ordinary dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


MAX_BYTES = 1 << 22
"""A larger file is surely not a configuration (and would take minutes to read)."""

MAX_NODES = 100_000
"""Aliases can make a small text into a huge tree; this ends it."""

MAX_DEPTH = 100
"""Deepest nesting that is read."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar rules of YAML 1.2 (core schema)."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])

_DISPUTED = re.compile("[\t?!\ufeff]|[|>]#")  # where libyaml and PyYAML do not read the same
if yaml.__with_libyaml__:

    class _FastLoader(Composer, yaml.CSafeLoader):
        """`_Loader` in a fraction of its time.

        The events are libyaml's. Nodes are made of them here, since libyaml overflows the stack with those of a deep text.
        """

        yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

        def __init__(self, text: str) -> None:
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)


def _compose(text: str) -> tuple[Any, yaml.Node | None]:
    """A loader, and the node of the whole text; None if the text has none."""
    if yaml.__with_libyaml__ and not _DISPUTED.search(text):
        with suppress(yaml.YAMLError):  # said below in PyYAML's words
            fast = _FastLoader(text)
            return fast, fast.get_single_node()
    loader = _Loader(text)
    return loader, loader.get_single_node()


def parse_yaml(text: str, name: str) -> tuple[Any, list[Problem]]:
    """Parses YAML text.

    Args:
        text: the text.
        name: what messages call it, usually the file's path.

    Returns:
        The value (None when it cannot be read) and the problems found on the way.
    """
    try:
        loader, node = _compose(text)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = Mark(name, place.line + 1, place.column + 1) if place else Mark(name)
        what = " ".join(filter(None, [error.context, error.problem]))
        return None, [Problem(mark, "", f"not valid YAML: {what}", _syntax_fix(text, error))]
    except yaml.YAMLError as error:  # for instance a character that YAML forbids
        return None, [Problem(Mark(name), "", f"not valid YAML: {' '.join(str(error).split())}")]
    except RecursionError:
        return None, [_too_deep(Mark(name, 1, 1))]
    if node is None:
        return MarkedDict(Mark(name, 1, 1)), []
    builder = _Builder(name, loader)
    try:
        return builder.value(node, ""), builder.problems
    except _TooLarge as error:
        return None, [error.problem]


def _syntax_fix(text: str, error: yaml.MarkedYAMLError) -> str:
    place = error.problem_mark
    lines = text.splitlines()
    line = lines[place.line] if place is not None and place.line < len(lines) else ""
    before = lines[place.line - 1] if place is not None and 0 < place.line <= len(lines) else ""
    what = error.problem or ""
    if "\\t" in what or "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces; YAML allows no tabs there"
    for candidate in (line, before):
        glued = re.match(r"\s*([\w.]+):([^\s:]\S*)\s*$", candidate)
        if glued and ("expected ':'" in what or "mapping values" in what):
            return f"put a space after the colon: '{glued[1]}: {glued[2]}'"
    if "mapping values are not allowed" in what:
        return "check the indentation, or quote a value that contains ': '"
    if "alias" in what and "undefined" in what:
        return "quote a value that begins with '*'"
    if "expected ',' or" in what:
        return "a comma or a closing bracket is missing"
    if "expected <block end>" in what:
        return "keys of one section must be indented alike"
    if "but found another document" in what:
        return "remove the line '---'"
    return ""


def _too_deep(mark: Mark) -> Problem:
    return Problem(mark, "", f"nested more than {MAX_DEPTH} levels deep, which no configuration needs")


class _TooLarge(Exception):  # noqa: N818  # never leaves this module
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def read_yaml(path: Path) -> tuple[Any, list[Problem]]:
    """Parses a YAML file; an unreadable file is a problem too."""
    name = str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            what = f"has {size / 1e6:.0f} MB; a configuration has a few kilobytes"
            return None, [Problem(Mark(name), "", what, "check the path given to -opt or include")]
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, [Problem(Mark(name), "", "there is no such file; check the path given to -opt or include")]
    except IsADirectoryError:
        return None, [Problem(Mark(name), "", "this is a folder; give the path of a .yml file")]
    except (OSError, ValueError) as error:
        return None, [Problem(Mark(name), "", f"cannot be read as UTF-8 text: {error}")]
    return parse_yaml(text, name)


class _Builder:
    def __init__(self, name: str, loader: Any) -> None:
        self.name = name
        self.loader = loader
        self.problems: list[Problem] = []
        self.open: list[yaml.Node] = []  # the collections that the current node stands in
        self.count = 0
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, path: str) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooLarge(Problem(self._mark(node), path, f"the file has more than {MAX_NODES} values, aliases followed"))
        if len(self.open) > MAX_DEPTH:
            raise _TooLarge(_too_deep(self._mark(node)))
        if node in self.open:
            self.problems.append(Problem(self._mark(node), path, "this anchor contains itself", "write the value out"))
            return UNREADABLE
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.problems.append(Problem(self._mark(node), path, f"the tag {node.tag} is not allowed", "remove it"))
        self.open.append(node)
        result = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        self.open.pop()
        return result

    def _sequence(self, node: yaml.Node, path: str) -> MarkedList:
        result = MarkedList(self._mark(node))
        for position, item in enumerate(node.value):
            result.append(self.value(item, f"{path}[{position}]"))
            result.marks.append(self._mark(item))
        return result

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        whole = node.tag == "tag:yaml.org,2002:int"
        construct: Callable[[Any], Any] = self._whole if whole else self.loader.construct_object
        try:
            return construct(node)
        except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = getattr(error, "problem", None) or f"'{str(node.value)[:40]}' is not what the tag {node.tag} says"
            self.problems.append(Problem(self._mark(node), path, f"cannot be read: {reason}"))
            return UNREADABLE

    @staticmethod
    def _whole(node: yaml.ScalarNode) -> int:
        return int(str(node.value).replace("_", ""), 10)

    def _mapping(self, node: yaml.MappingNode, path: str) -> MarkedDict:
        if id(node) not in self.seen:  # an alias comes by again, and what it merged is then part of it
            self.seen.add(id(node))
            self._report_duplicates(node, path)
        self._merge(node, path)
        result = MarkedDict(self._mark(node))
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str | int | float | bool) or key == "":
                self.problems.append(Problem(self._mark(key_node), path, "a key must be a word", "write 'key: value'"))
                continue
            name = key if isinstance(key, str) else str(key_node.value)
            value = self.value(value_node, f"{path}.{name}" if path else name)
            result.put(name, value, self._mark(key_node), self._mark(value_node))
        return result

    def _merge(self, node: yaml.MappingNode, path: str) -> None:
        """Follows `<<: *anchor`; entries of the mapping itself come last and win."""
        for key_node, value_node in list(node.value):
            if key_node.tag != "tag:yaml.org,2002:merge":
                continue
            merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            if any(not isinstance(each, yaml.MappingNode) or each in self.open for each in merged):
                what = "'<<' takes a mapping, or a list of them, that does not contain itself"
                self.problems.append(Problem(self._mark(value_node), path, what, "for instance '<<: *defaults'"))
                node.value.remove((key_node, value_node))
        try:
            self.loader.flatten_mapping(node)
        except (yaml.MarkedYAMLError, RecursionError):  # a fault further down the chain
            what = "a mapping that '<<' takes is not one, or contains itself"
            self.problems.append(Problem(self._mark(node), path, what))

    def _report_duplicates(self, node: yaml.MappingNode, path: str) -> None:
        first: dict[str, Mark] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, mark = str(key_node.value), self._mark(key_node)
            if key in first:
                where = f"{path}.{key}" if path else key
                self.problems.append(
                    Problem(mark, where, f"the key is given twice, first in line {first[key].line}", "remove one")
                )
            first.setdefault(key, mark)

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self.name, node.start_mark.line + 1, node.start_mark.column + 1)
