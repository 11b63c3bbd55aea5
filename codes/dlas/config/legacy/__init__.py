"""Spellings of DL-Art-School's files, translated to ours, each with a notice that the user is shown.

`vocabulary` lists every key of its language with what becomes of it, `actions` does it, `repairs` mends what is wrong in a
file as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dlas.config.legacy.actions import Found
from dlas.config.legacy.repairs import is_upstream, repair
from dlas.config.legacy.vocabulary import KEYS
from dlas.config.source import MarkedDict
from dlas.config.typespec import Cursor

__all__ = ["is_for_testing", "translate"]


def translate(tree: MarkedDict, cursor: Cursor, mode: str) -> None:
    """Rewrites older spellings in place and notes each at the place where it was written.

    Args:
        tree: the file, includes and overrides merged.
        cursor: its top.
        mode: `train` or `test`.
    """
    upstream = is_upstream(tree)
    if upstream:
        repair(tree, cursor, mode)
    for key in KEYS:
        if key.action is None:
            continue
        for holder, name, place in list(_matches(tree, key.path, cursor)):
            if name in holder:
                key.action(Found(holder, name, place, tree, upstream))


def is_for_testing(tree: MarkedDict) -> bool:
    """Whether this is a file of DL-Art-School for its test.py or process_video.py: nothing in it could be trained."""
    steps = tree.get("steps")
    losses = [step.get("losses") for step in steps.values() if isinstance(step, dict)] if isinstance(steps, dict) else []
    return is_upstream(tree) and not any(losses) and ("train" not in tree or "dataset" in tree)


def _matches(node: Any, pattern: str, cursor: Cursor) -> Iterator[tuple[MarkedDict, str, Cursor]]:
    head, _, rest = pattern.partition(".")
    if not isinstance(node, MarkedDict):
        return
    expression = re.compile(re.escape(head).replace(r"\*", ".*"))
    for key in [k for k in node if expression.fullmatch(k)]:
        if rest:
            yield from _matches(node[key], rest, cursor.value(node, key))
        else:
            yield node, key, cursor.key(node, key)
