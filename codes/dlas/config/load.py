"""Reading a file together with the files it includes, the run it tests, and overrides from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlas.config.problems import Problem
from dlas.config.schema import NetworkConfig
from dlas.config.source import Mark, MarkedDict, MarkedList, parse_yaml, read_yaml

# What a file for testing takes over from the run that it names, unless it says so itself.
_FROM_RUN = ("scale", "plugins", "precision", "memory_format", "networks", "steps", "eval")


@dataclass
class Read:
    """What a file gave.

    Args:
        tree: the merged tree, or None if the file itself cannot be read.
        problems: what was wrong on the way.
        complete: False where a part could not be read, so that what is missing may stand there.
        for_testing: the file is for testing: it was asked for, or the file says so.
    """

    tree: MarkedDict | None
    problems: list[Problem] = field(default_factory=list)
    complete: bool = True
    for_testing: bool = False


def read_tree(path: Path, overrides: Sequence[str], mode: str | None) -> Read:
    """The merged tree of a file, with what it includes, what the command line overrides, and for testing what its run says.

    Without a `mode`, a file that names a run (`path.run`) and has no `train` is taken to be for testing.
    """
    read = _with_includes(path, ())
    if read.tree is None:
        return read
    for text in overrides:
        read.problems += _override(read.tree, text)
    read.for_testing = mode == "test" or (mode is None and "train" not in read.tree and _named_run(read.tree) is not None)
    if read.for_testing:
        problems = _take_from_run(read.tree)
        read.problems += problems
        read.complete &= not problems
    return read


def _with_includes(path: Path, chain: tuple[Path, ...]) -> Read:
    tree, problems = read_yaml(path)
    if not isinstance(tree, MarkedDict):
        if not problems:
            problems = [Problem(Mark(str(path), 1, 1), "", "expected a mapping of keys at the top of the file")]
        return Read(None, problems, False)
    read = Read(tree, problems)
    if "include" not in tree:
        return read
    names, _, place = tree.take("include")
    places = getattr(names, "marks", [place])
    for name, mark in zip(names if isinstance(names, list) else [names], places, strict=True):
        further = _include(name, mark, path, chain)
        read.problems += further.problems
        read.complete &= further.complete
        if further.tree is not None:
            _merge_under(tree, further.tree)
    return read


def _include(name: Any, mark: Mark, path: Path, chain: tuple[Path, ...]) -> Read:
    if not isinstance(name, str) or not name:
        what = "expected the path of a file, or a list of them"
        return Read(None, [Problem(mark, "include", what, "for instance 'include: shared.yml'")], False)
    try:
        file = (path.parent / name).resolve()
        found = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, or with a character that no path has
        return Read(None, [Problem(mark, "include", f"this is no path: {error}")], False)
    if not found:
        return Read(None, [Problem(mark, "include", f"there is no file {file}", "paths are relative to this file")], False)
    if file in chain or file == path.resolve():
        return Read(None, [Problem(mark, "include", f"{name} includes itself", "remove one of the two includes")], False)
    return _with_includes(file, (*chain, path.resolve()))


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
        return [Problem(mark, path, problem.message, problem.fix) for problem in problems]
    if isinstance(value, MarkedDict) and not value_text.strip().startswith("{"):
        value = None  # an empty text
    keys = path.split(".")
    if "" in keys:
        return [Problem(mark, path, "expected key=value", "for instance --set train.niter=100")]
    holder: Any = tree
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(holder, MarkedList):
            if not key.isdigit() or int(key) >= len(holder):
                what = f"'{key}' is not a position in a list of {len(holder)}"
                return [Problem(mark, path, what, "positions count from 0")]
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
            holds = f"'{'.'.join(keys[:position])}' holds a value, not further keys"
            return [Problem(mark, path, holds, "leave out what follows it")]
    return []


def _named_run(tree: MarkedDict) -> str | None:
    section = tree.get("path")
    run = section.get("run") if isinstance(section, MarkedDict) else None
    return run if isinstance(run, str) else None


def _take_from_run(tree: MarkedDict) -> list[Problem]:
    named = _named_run(tree)
    if named is None:
        return []
    place = tree["path"].value_marks["run"]
    file = Path(named) / "config.resolved.yml"
    try:
        found = file.is_file()
    except (OSError, ValueError):  # longer than any path can be
        found = False
    if not found:
        return [Problem(place, "path.run", f"there is no run at {named} ({file} is missing)", "train it first")]
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
    _leave_out_named_networks(taken, tree)
    _merge_under(tree, taken)
    return problems


def _leave_out_named_networks(taken: MarkedDict, tree: MarkedDict) -> None:
    """A network whose architecture the file names itself is the file's alone: the name may be spelt in another way there."""
    own, of_run = tree.get("networks"), taken.get("networks")
    if isinstance(own, MarkedDict) and isinstance(of_run, MarkedDict):
        for name, network in own.items():
            if name in of_run and isinstance(network, MarkedDict) and any(key in network for key in NetworkConfig.NAME_KEYS):
                of_run.take(name)
