"""Reading a file together with the files it includes, the run it tests, and overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlas.config.problems import Problem
from dlas.config.source import Mark, MarkedDict, MarkedList, parse_yaml, read_yaml

# What a file for testing takes over from the run that it names, unless it says so itself.
_FROM_RUN = ("scale", "plugins", "precision", "memory_format", "networks", "steps", "eval")


def read_tree(path: Path, overrides: Sequence[str], mode: str) -> tuple[MarkedDict | None, list[Problem]]:
    """The merged tree of a file, or None if it cannot be read, and the problems on the way."""
    tree, problems = _with_includes(path, ())
    if tree is None:
        return None, problems
    for text in overrides:
        problems += _override(tree, text)
    if mode == "test":
        problems += _take_from_run(tree)
    return tree, problems


def _with_includes(path: Path, chain: tuple[Path, ...]) -> tuple[MarkedDict | None, list[Problem]]:
    tree, problems = read_yaml(path)
    if not isinstance(tree, MarkedDict):
        if tree is not None:
            problems.append(Problem(Mark(str(path), 1, 1), "", "expected a mapping of keys at the top of the file"))
        return None, problems
    if "include" not in tree:
        return tree, problems
    names, _, place = tree.take("include")
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str):
            problems.append(Problem(place, "include", "expected the path of a file, or a list of them"))
            continue
        included = (path.parent / name).resolve()
        if included in chain or included == path.resolve():
            problems.append(Problem(place, "include", f"{name} includes itself"))
            continue
        shared, further = _with_includes(included, (*chain, path.resolve()))
        if shared is None and not included.exists():
            further = [Problem(place, "include", f"there is no file {included}", "paths are relative to this file")]
        problems += further
        if shared is not None:
            _merge_under(tree, shared)
    return tree, problems


def _merge_under(tree: MarkedDict, base: MarkedDict) -> None:
    """Adds to `tree` what only `base` has; mappings merge, everything else of `tree` wins."""
    for key, value in base.items():
        if key not in tree:
            tree.put(key, value, base.key_marks[key], base.value_marks[key])
        elif isinstance(tree[key], MarkedDict) and isinstance(value, MarkedDict):
            _merge_under(tree[key], value)


def _override(tree: MarkedDict, text: str) -> list[Problem]:
    mark = Mark(f"--set {text}")
    path, equals, value_text = text.partition("=")
    if not equals or not path:
        return [Problem(mark, "", "expected key=value", "for instance --set train.niter=100")]
    value, problems = parse_yaml(value_text, mark.file)
    if problems:
        return [Problem(mark, path, problem.message) for problem in problems]
    if isinstance(value, MarkedDict) and not value_text.strip().startswith("{"):
        value = None  # an empty text
    keys = path.split(".")
    holder: Any = tree
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(holder, MarkedList):
            if not key.isdigit() or int(key) >= len(holder):
                return [Problem(mark, path, f"'{key}' is not a position in a list of {len(holder)}")]
            if last:
                holder[int(key)], holder.marks[int(key)] = value, mark
            holder = holder[int(key)]
        elif isinstance(holder, MarkedDict):
            if last:
                holder.put(key, value, mark)
            elif holder.get(key) is None:
                holder.put(key, MarkedDict(mark), mark)
            holder = holder[key]
        else:
            return [Problem(mark, path, f"'{'.'.join(keys[:position])}' holds a value, not further keys")]
    return []


def _take_from_run(tree: MarkedDict) -> list[Problem]:
    section = tree.get("path")
    if not isinstance(section, MarkedDict) or not isinstance(section.get("run"), str):
        return []
    place = section.value_marks["run"]
    file = Path(section["run"]) / "config.resolved.yml"
    if not file.is_file():
        return [Problem(place, "path.run", f"there is no run at {section['run']} ({file} is missing)", "train it first")]
    run, problems = read_yaml(file)
    if not isinstance(run, MarkedDict):
        return problems or [Problem(place, "path.run", f"{file} is empty", "train the run again")]
    taken = MarkedDict(run.mark)
    for key in _FROM_RUN:
        if key in run:
            taken.put(key, run[key], run.key_marks[key], run.value_marks[key])
    if isinstance(run.get("path"), MarkedDict) and "pretrain" in run["path"]:  # frozen networks are not in checkpoints
        taken.put("path", MarkedDict(run["path"].mark), run.key_marks["path"])
        taken["path"].put("pretrain", run["path"]["pretrain"], run["path"].key_marks["pretrain"])
    _merge_under(tree, taken)
    return problems
