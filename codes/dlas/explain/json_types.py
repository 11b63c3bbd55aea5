"""Types of options, read from the text of an annotation, as JSON schema: the counterpart of `dlas.config.typespec`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_KEY: Schema = {"type": "string", "minLength": 1}
_KEYS: Schema = {"type": ["string", "array"], "minLength": 1, "minItems": 1, "items": _KEY}
_ARGUMENT: Schema = {
    "type": ["string", "number", "boolean", "null", "array"],
    "minItems": 1,
}  # a state key, a literal or a list
NAMED: dict[str, Schema] = {
    "Any": {},
    "object": {},
    "None": {"type": "null"},
    "bool": {"type": "boolean"},
    "str": _TEXT,
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "PositiveInt": {"type": "integer", "minimum": 1},
    "NonNegativeInt": {"type": "integer", "minimum": 0},
    "PositiveFloat": {"type": "number", "exclusiveMinimum": 0},
    "NonNegativeFloat": {"type": "number", "minimum": 0},
    "Fraction": {"type": "number", "minimum": 0, "maximum": 1},
    "StateIn": _KEY,
    "StateIns": {**_KEYS, "items": _ARGUMENT},
    "StateOut": _KEY,
    "StateOuts": _KEYS,
    "NetworkName": _TEXT,
    "MetricName": _TEXT,
    "list": {"type": "array"},
    "dict": {"type": "object"},
}


def json_type(text: str, named: Callable[[str], Schema | None] = lambda name: None) -> Schema:
    """The schema of an annotation's values; names that are not known accept any value, as in the checker.

    Args:
        text: for instance ``Literal["a", "b"] | None``.
        named: gives the schema of further names, for instance sections of the configuration.
    """
    return _schema(ast.parse(text, mode="eval").body, named)


def _schema(node: ast.expr, named: Callable[[str], Schema | None]) -> Schema:
    if isinstance(node, ast.Name):
        return named(node.id) or dict(NAMED.get(node.id, {}))
    if isinstance(node, ast.Constant):
        return dict(NAMED["None"]) if node.value is None else json_type(str(node.value), named)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_schema(each, named) for each in _members(node)])
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        origin = node.value.id
        if origin == "Literal":
            return {"enum": [ast.literal_eval(each) for each in inner]}
        if origin in ("list", "Sequence", "tuple"):
            return {"type": "array", "items": _schema(inner[0], named)}
        if origin in ("dict", "Mapping"):
            return {"type": "object", "additionalProperties": _schema(inner[1], named)}
    return {}


def _members(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _members(node.left) + _members(node.right)
    return [node]


def _union(members: list[Schema]) -> Schema:
    """Simple types are joined into one list, which editors show better than alternatives."""
    if {} in members:
        return {}
    null = {"type": "null"}
    rest = [member for member in members if member != null]
    if len(rest) == 1 and null in members:
        (only,) = rest
        if "enum" in only:
            return {"enum": [*only["enum"], None]}
        if isinstance(only.get("type"), str):
            return {**only, "type": [only["type"], "null"]}
    return {"anyOf": members}
