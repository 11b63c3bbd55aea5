"""Configuration files: read, translate, check, build. Nothing here imports torch.

`check(path)` lists every problem of a file; `load(path, overrides)` gives a `Config` or raises with all problems at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dlas.config.announced import settle
from dlas.config.build import build, to_plain, to_yaml
from dlas.config.legacy import is_for_testing, translate
from dlas.config.load import read_tree
from dlas.config.problems import Problem, in_order
from dlas.config.schema import Config
from dlas.config.source import MarkedDict
from dlas.config.typespec import Cursor
from dlas.config.wiring import check_wiring
from dlas.config.wiring.limits import processes
from dlas.errors import ConfigurationError
from dlas.registry import load_plugin, nearest

__all__ = ["Config", "Problem", "check", "load", "to_plain", "to_yaml"]

Mode = Literal["train", "test"]


def check(path: str | Path, overrides: Sequence[str] = (), mode: Mode | None = None) -> list[Problem]:
    """Everything that is wrong with a file, and notices of translated spellings, in the order of its lines.

    Args:
        path: the YAML file.
        overrides: `a.b.c=value` texts, applied on top of the file.
        mode: what the file is for; a file for `test` needs no training part. By default `train`, but `test` for a file
            without `train` that names a run (`path.run`), and for one of DL-Art-School in which nothing could be trained.
    """
    return _load(Path(path), overrides, mode)[1]


def load(path: str | Path, overrides: Sequence[str] = (), mode: Mode | None = "train") -> Config:
    """The configuration in a file.

    Args:
        path: the YAML file.
        overrides: `a.b.c=value` texts, applied on top of the file.
        mode: what the file is for; None finds out as `check` does.

    Raises:
        ConfigurationError: the file has errors; the message lists all of them. What its `distributed.strategy` cannot do is
            one where several processes were started (WORLD_SIZE), and a warning in a single one.
    """
    config, problems = _load(Path(path), overrides, mode, alone=processes() == 1)
    errors = [p for p in problems if p.severity == "error"]
    if errors or config is None:
        count = f"{len(errors)} problem{'s' * (len(errors) != 1)} in {path}"
        raise ConfigurationError("\n".join([count, *map(str, errors)]))
    config.notices = [p for p in problems if p.severity != "error"]
    return config


def _load(
    path: Path, overrides: Sequence[str], wanted: Mode | None, alone: bool = False
) -> tuple[Config | None, list[Problem]]:
    read = read_tree(path, overrides, wanted)
    tree = read.tree
    if tree is None:
        return None, in_order(read.problems)
    cursor = Cursor(tree.mark, "", read.problems)
    mode: Mode = wanted or ("test" if read.for_testing or is_for_testing(tree) else "train")
    translate(tree, cursor, mode)
    complete = read.complete & _load_plugins(tree, cursor, path)
    config = build(tree, cursor, complete)
    if complete:
        _check_complete(tree, cursor, mode)
    check_wiring(config, cursor.problems, training=mode == "train", complete=complete, alone=alone)
    return config, in_order(settle(cursor.problems))


def _load_plugins(tree: MarkedDict, cursor: Cursor, path: Path) -> bool:
    """Registers what the file's plug-ins define; False if one cannot be read, so that names of its components are not known."""
    given = tree.get("plugins")
    plugins = given if isinstance(given, list) else []
    complete = True
    for position, plugin in enumerate(plugins):
        if not isinstance(plugin, str) or not plugin:
            continue  # the schema says so
        place = cursor.value(tree, "plugins").item(plugins, position)
        try:
            plugins[position] = load_plugin(plugin, path.parent)  # the resolved file must find it from anywhere
        except ConfigurationError as error:
            place.note(str(error))
        except Exception as error:  # whatever a foreign file does when it must be imported to know a signature
            place.note(f"plugin '{plugin}' cannot be read: {type(error).__name__}: {error}")
        else:
            continue
        complete = False
    return complete


def _check_complete(tree: MarkedDict, cursor: Cursor, mode: Mode) -> None:
    datasets, networks = tree.get("datasets", {}), tree.get("networks", {})
    named = list(datasets) if isinstance(datasets, dict) else None  # None: the schema has refused the section
    if mode == "train":
        if named is not None and "train" not in named:
            close = nearest("train", named)
            fix = f"call '{close}' 'train'" if close else "add 'train:' under 'datasets:'"
            cursor.note("there is no data set to train on", fix)
        if tree.get("steps", {}) == {}:
            cursor.note("there are no steps, so nothing would be trained", "add 'steps:'")
        if tree.get("train") is None:
            cursor.note("the section 'train' is missing", "add 'train:' with at least 'niter:'")
    elif named is not None and not [name for name in named if name != "train"]:
        cursor.note("there is no data set to test on", "add one under 'datasets:' (any name but 'train')")
    if networks == {}:
        cursor.note("there are no networks", "add 'networks:'" + (" or 'path.run'" if mode == "test" else ""))
