"""YAML text -> plain Python values that remember where they stood, so that every later message can point at a line.

Differences from PyYAML's own loader, each closing a trap: `1e-4` is a float; only `true` and `false` are booleans; `012` is
twelve; a duplicate key is an error; no tag can build a Python object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

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


def plain(value: Any) -> Any:
    """The same value in ordinary dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


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


def parse_yaml(text: str, name: str) -> tuple[Any, list[Problem]]:
    """Parses YAML text.

    Args:
        text: the text.
        name: what messages call it, usually the file's path.

    Returns:
        The value (None when it cannot be read) and the problems found on the way.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = Mark(name, place.line + 1, place.column + 1) if place else Mark(name)
        what = " ".join(filter(None, [error.context, error.problem]))
        return None, [Problem(mark, "", f"not valid YAML: {what}")]
    except yaml.YAMLError as error:  # for instance a character that YAML forbids
        return None, [Problem(Mark(name), "", f"not valid YAML: {' '.join(str(error).split())}")]
    if node is None:
        return MarkedDict(Mark(name, 1, 1)), []
    builder = _Builder(name, loader)
    return builder.value(node, ""), builder.problems


def read_yaml(path: Path) -> tuple[Any, list[Problem]]:
    """Parses a YAML file; an unreadable file is a problem too."""
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None, [Problem(Mark(name), "", "there is no such file; check the path given to -opt or include")]
    except IsADirectoryError:
        return None, [Problem(Mark(name), "", "this is a folder; give the path of a .yml file")]
    except (OSError, UnicodeDecodeError) as error:
        return None, [Problem(Mark(name), "", f"cannot be read as UTF-8 text: {error}")]
    return parse_yaml(text, name)


class _Builder:
    def __init__(self, name: str, loader: _Loader) -> None:
        self.name = name
        self.loader = loader
        self.problems: list[Problem] = []
        self.open: list[yaml.Node] = []  # the collections that the current node stands in

    def value(self, node: yaml.Node, path: str) -> Any:
        if node in self.open:
            self.problems.append(Problem(self._mark(node), path, "this anchor contains itself"))
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.problems.append(Problem(self._mark(node), path, f"the tag {node.tag} is not allowed", "remove it"))
        self.open.append(node)
        result = self._collection(node, path)
        self.open.pop()
        return result

    def _collection(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        result = MarkedList(self._mark(node))
        for position, item in enumerate(node.value):
            result.append(self.value(item, f"{path}[{position}]"))
            result.marks.append(self._mark(item))
        return result

    def _scalar(self, node: yaml.Node, path: str) -> Any:
        if node.tag == "tag:yaml.org,2002:int":
            return int(str(node.value).replace("_", ""), 10)
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or str(error)
            self.problems.append(Problem(self._mark(node), path, f"cannot be read: {reason}"))
            return None

    def _mapping(self, node: yaml.MappingNode, path: str) -> MarkedDict:
        self._report_duplicates(node, path)
        self.loader.flatten_mapping(node)  # `<<: *anchor`; entries of this mapping come last and win
        result = MarkedDict(self._mark(node))
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str | int | float | bool):
                self.problems.append(Problem(self._mark(key_node), path, "a key must be a word"))
                continue
            name = key if isinstance(key, str) else str(key_node.value)
            value = self.value(value_node, f"{path}.{name}" if path else name)
            result.put(name, value, self._mark(key_node), self._mark(value_node))
        return result

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
