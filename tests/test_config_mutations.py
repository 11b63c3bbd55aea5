"""Shipped files with random changes: the checker always answers, and no change passes without an effect.

The number of examples is small by default; `DLAS_FUZZ_EXAMPLES=20000` in the environment runs that many of each.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from copy import deepcopy
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dlas.config import check, load, to_plain
from dlas.config.schema import SECTIONS, Component
from dlas.config.source import plain, read_yaml
from dlas.errors import ConfigurationError
from dlas.registry import REQUIRED, python_name

pytestmark = pytest.mark.timeout(300 + int(os.environ.get("DLAS_FUZZ_EXAMPLES", "0")))
ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = int(os.environ.get("DLAS_FUZZ_EXAMPLES", "300"))
FOLDER = Path(tempfile.mkdtemp(prefix="dlas-mutations-"))
PATH = FOLDER / "mutated.yml"
NAMES = sorted(path.name for path in (ROOT / "options").glob("*.yml"))


class Pairs(list[list[Any]]):
    """A mapping as [key, value] pairs, so that a key can stand twice."""


def as_pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs([key, as_pairs(item)] for key, item in value.items())
    return [as_pairs(item) for item in value] if isinstance(value, list) else value


def emit(value: Any) -> str:
    """YAML in flow style."""
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {emit(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(emit, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf"
    return json.dumps(value)


def nodes(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[list[Any], int, tuple[str, ...]]]:
    """Every entry of the tree: the collection it stands in, its position there, its path."""
    found = []
    for position, entry in enumerate(tree if isinstance(tree, list) else ()):
        key, value = entry if isinstance(tree, Pairs) else (str(position), entry)
        found.append((tree, position, (*path, key)))
        found += nodes(value, (*path, key))
    return found


def mode_of(name: str) -> str:
    return "test" if name.startswith("eval") else "train"


def original(name: str) -> Pairs:
    """The tree of a shipped file; the run that a file for testing names is a finished one."""
    tree = plain(read_yaml(ROOT / "options" / name)[0])
    if mode_of(name) == "test":
        run = FOLDER / "run"
        if not run.exists():
            run.mkdir()
            resolved = to_plain(load(ROOT / "options" / "train_x.yml"))
            (run / "config.resolved.yml").write_text(yaml.safe_dump(resolved, sort_keys=False))
        tree["path"]["run"] = str(run)
    return as_pairs(tree)


OTHERS: list[Any] = [
    *("text", "", "None", "5", "hq", "generator", "pix"),
    *(5, 0, -1, 2.5, 1e300, 10**30, math.inf, math.nan, True, False, None),
    *([], [1], ["gen"], [[["deep"]]], Pairs(), Pairs([["a", 1]])),
]
"""Values that a node may be changed to."""


def keys_of(tree: Pairs) -> list[str]:
    return sorted({path[-1] for holder, _, path in nodes(tree) if isinstance(holder, Pairs)})


@st.composite
def mutation(draw: st.DrawFn, tree: Pairs) -> tuple[str, tuple[str, ...], Any]:
    """Changes the tree at one place. Returns the kind of change, the node's path, and the key, value or path that it got."""
    places = nodes(tree)
    kind = draw(st.sampled_from(["delete", "rename", "retype", "move", "duplicate"]))
    holder, position, path = draw(st.sampled_from(places))
    entry = holder[position]
    if kind == "delete":
        del holder[position]
        return kind, path, None
    if kind == "rename" and isinstance(holder, Pairs):
        old = entry[0]
        new = draw(
            st.sampled_from([f"{old}x", old[:-1], old.upper(), "", "5", f" {old}", *keys_of(tree)]).filter(lambda k: k != old)
        )
        entry[0] = new
        return kind, path, new
    if kind == "retype":
        values = [value for each, at, _ in places for value in [each[at][1] if isinstance(each, Pairs) else each[at]]]
        new = draw(st.sampled_from([*OTHERS, *values]))
        new = deepcopy(new)
        if isinstance(holder, Pairs):
            entry[1] = new
        else:
            holder[position] = new
        return kind, path, new
    if kind == "move":
        outside = {id(each): (each, at[:-1]) for each, _, at in places if at[: len(path)] != path and each is not holder}
        targets = list(outside.values()) or [(tree, ())]
        target, above = draw(st.sampled_from(targets))
        del holder[position]
        where = draw(st.integers(0, len(target)))
        value = entry[1] if isinstance(holder, Pairs) else entry
        target.insert(where, [path[-1], value] if isinstance(target, Pairs) else value)
        return kind, path, (*above, path[-1])
    if isinstance(holder, Pairs):
        holder.append([entry[0], deepcopy(draw(st.sampled_from([entry[1], *OTHERS])))])
    else:
        holder.append(deepcopy(entry))
    return "duplicate", path, None


def section_at(tree: Pairs, path: tuple[str, ...]) -> tuple[str | None, Any]:
    """The class of the section that a path of keys leads to, and its node; the class is None inside of options."""
    name: str | None = "Config"
    node: Any = tree
    named = False
    for key in path:
        node = next((value for each, value in node if each == key), None) if isinstance(node, Pairs) else None
        if named:
            named = False
            continue
        field = next((f for f in fields(SECTIONS[name]) if f.name == key), None) if name else None
        kinds = [cls for cls in SECTIONS if field is not None and cls in str(field.type)]
        name = kinds[0] if kinds else None
        named = bool(kinds) and str(field.type).startswith("dict")  # type: ignore[union-attr]
    return (None if named else name), node


def is_default(tree: Pairs, path: tuple[str, ...], value: Any) -> bool:
    """Whether a value says what holds anyway, by the schema or by the signature of the registered component."""
    name, node = section_at(tree, path[:-1])
    if name is None:
        return False
    cls = SECTIONS[name]
    field = next((f for f in fields(cls) if f.name == path[-1]), None)
    if field is not None:
        if isinstance(value, Pairs) and section_at(tree, path)[0] and field.default_factory is not MISSING:
            return all(is_default(tree, (*path, key), item) for key, item in value)
        default = field.default if field.default is not MISSING else None
        if field.default_factory is not MISSING:
            default = field.default_factory()
            return value == default or (value in (None, []) and not isinstance(default, dict | list))
        return value == default and isinstance(value, bool) == isinstance(default, bool)
    if issubclass(cls, Component) and isinstance(node, Pairs):
        given_name = next((value for key, value in node if key in cls.NAME_KEYS), None)
        if isinstance(given_name, str) and given_name in cls.REGISTRY:
            parameter = cls.REGISTRY.find(given_name).parameter(python_name(path[-1], cls.REGISTRY.find(given_name)))
            return parameter is not None and parameter.default is not REQUIRED and parameter.default == value
    return False


def value_at(tree: Pairs, path: tuple[str, ...]) -> Any:
    node: Any = tree
    for key in path:
        node = next(value for each, value in node if each == key) if isinstance(node, Pairs) else node[int(key)]
    return node


def means_the_same(before: Pairs, kind: str, path: tuple[str, ...], new: Any) -> bool:
    """Whether a change leaves the meaning of a file as it was, by rules that know nothing of the checker."""
    old = value_at(before, path)
    if kind == "delete":
        return is_default(before, path, old)
    if kind == "move":
        return is_default(before, path, old) and is_default(before, new, old)
    if kind == "rename":
        names = SECTIONS["NetworkConfig"].NAME_KEYS  # type: ignore[attr-defined]
        return path[-1] in names and new in names
    if kind == "retype":
        numbers = isinstance(old, int | float) and isinstance(new, int | float)
        if (type(old) is type(new) or numbers) and old == new and isinstance(old, bool) == isinstance(new, bool):
            return True
        holds_anyway = is_default(before, path, old)
        return holds_anyway and (is_default(before, path, new) or (new is None and isinstance(old, Pairs)))
    return False


def outcome(mode: str) -> tuple[list[str], Any]:
    """The problems of the mutated file, and what it resolves to if it can be used."""
    try:
        config = load(PATH, mode=mode)
    except ConfigurationError as error:
        return [str(error)], None
    return [str(notice) for notice in config.notices], to_plain(config)


COMMON = settings(
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=EXAMPLES,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
BASELINES: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@COMMON
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_no_change_passes_without_an_effect(data, name):
    if name not in BASELINES:
        PATH.write_text(emit(original(name)))
        problems, resolved = outcome(mode_of(name))
        assert problems == []
        BASELINES[name] = resolved
    tree = original(name)
    kind, path, new = data.draw(mutation(tree))
    PATH.write_text(emit(tree))
    problems, resolved = outcome(mode_of(name))
    if not problems and resolved == BASELINES[name]:
        assert means_the_same(original(name), kind, path, new), f"{name}: {kind} of {'.'.join(path)} ({new!r}) is silent"


@COMMON
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_number_of_changes_gives_a_sorted_report_and_no_traceback(data, name):
    tree = original(name)
    for _ in range(data.draw(st.integers(2, 6))):
        if nodes(tree):
            data.draw(mutation(tree))
    PATH.write_text(emit(tree))
    problems = check(PATH, mode=mode_of(name))
    assert [str(p) for p in problems] == [
        str(p) for p in sorted(problems, key=lambda p: (p.mark.file, p.mark.line, p.mark.column))
    ]
    assert all(p.mark.line > 0 for p in problems if not p.message.startswith("not valid YAML"))
    if not any(problem.severity == "error" for problem in problems):
        resolved = to_plain(load(PATH, mode=mode_of(name)))
        PATH.write_text(yaml.safe_dump(resolved, sort_keys=False))
        assert to_plain(load(PATH, mode=mode_of(name))) == resolved


CHARACTERS = list("{}[]:,#&*!|>'\"%@`?<-=.~ \t\n\r0aN_\\\x00\x07\ufeffé")
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.integers(0, 8), st.lists(st.sampled_from(CHARACTERS), max_size=4).map("".join)
    ),
    min_size=1,
    max_size=5,
)  # fmt: skip


@COMMON
@given(edits=EDITS, name=st.sampled_from(NAMES))
def test_any_text_gives_a_report_and_no_traceback(edits, name):
    """Characters are cut out and put in anywhere: (place in the text, how many are cut out, what is put in)."""
    text = (ROOT / "options" / name).read_text()
    for place, removed, inserted in edits:
        start = round(place * len(text))
        text = text[:start] + inserted + text[start + removed :]
    PATH.write_bytes(text.encode())
    for problem in check(PATH, mode=mode_of(name)):
        assert problem.message
