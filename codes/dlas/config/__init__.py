"""Configuration files: read, translate, check, build. Nothing here imports torch.

`check(path)` lists every problem of a file; `load(path, overrides)` gives a `Config` or raises with all problems at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dlas.config.announced import settle
from dlas.config.build import build, to_plain
from dlas.config.legacy import is_for_testing, translate
from dlas.config.load import read_tree
from dlas.config.problems import Problem, in_order
from dlas.config.schema import Config
from dlas.config.source import MarkedDict
from dlas.config.typespec import Cursor
from dlas.config.wiring import check_wiring
from dlas.errors import ConfigurationError
from dlas.registry import load_plugin

__all__ = ["Config", "Problem", "check", "load", "to_plain"]

Mode = Literal["train", "test"]


def check(path: str | Path, overrides: Sequence[str] = (), mode: Mode | None = None) -> list[Problem]:
    """Everything that is wrong with a file, and notices of translated spellings, in the order of its lines.

    Args:
        path: the YAML file.
        overrides: `a.b.c=value` texts, applied on top of the file.
        mode: what the file is for; a file for `test` needs no training part. By default `train`, but `test` for a file of
            DL-Art-School in which nothing could be trained.
    """
    return _load(Path(path), overrides, mode)[1]


def load(path: str | Path, overrides: Sequence[str] = (), mode: Mode = "train") -> Config:
    """The configuration in a file.

    Raises:
        ConfigurationError: the file has errors; the message lists all of them.
    """
    config, problems = _load(Path(path), overrides, mode)
    errors = [p for p in problems if p.severity == "error"]
    if errors or config is None:
        count = f"{len(errors)} problem{'s' * (len(errors) != 1)} in {path}"
        raise ConfigurationError("\n".join([count, *map(str, errors)]))
    config.notices = [p for p in problems if p.severity != "error"]
    return config


def _load(path: Path, overrides: Sequence[str], wanted: Mode | None) -> tuple[Config | None, list[Problem]]:
    tree, problems = read_tree(path, overrides, wanted or "train")
    if tree is None:
        return None, in_order(problems)
    cursor = Cursor(tree.mark, "", problems)
    mode: Mode = wanted or ("test" if is_for_testing(tree) else "train")
    translate(tree, cursor, mode)
    plugins = tree.get("plugins")
    plugins = plugins if isinstance(plugins, list) else []
    for position, plugin in enumerate(plugins):
        try:
            load_plugin(str(plugin), path.parent)
        except ConfigurationError as error:
            cursor.value(tree, "plugins").item(plugins, position).note(str(error))
    config = build(tree, cursor)
    _check_complete(tree, cursor, mode)
    check_wiring(config, cursor, training=mode == "train")
    return config, in_order(settle(problems))


def _check_complete(tree: MarkedDict, cursor: Cursor, mode: Mode) -> None:
    datasets = tree.get("datasets")
    names = list(datasets) if isinstance(datasets, dict) else []
    if mode == "train":
        if "train" not in names:
            cursor.note("there is no data set to train on", "add 'train:' under 'datasets:'")
        if not tree.get("steps"):
            cursor.note("there are no steps, so nothing would be trained", "add 'steps:'")
        if not tree.get("train"):
            cursor.note("the section 'train' is missing", "add 'train:' with at least 'niter:'")
    elif not [name for name in names if name != "train"]:
        cursor.note("there is no data set to test on", "add one under 'datasets:' (any name but 'train')")
    if not tree.get("networks"):
        cursor.note("there are no networks", "add 'networks:'" + (" or 'path.run'" if mode == "test" else ""))
