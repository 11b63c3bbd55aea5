"""Running small configurations from text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

import toys  # noqa: F401  # registers its components
from dlas.config import Config, load
from dlas.engine.trainer import Trainer

_CLOCK = {"seconds", "iterations_per_second", "samples_per_second", "data_wait_share", "peak_memory_mb", "tflops", "mfu"}


def repeatable(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl without the entries that depend on the clock and the machine."""
    return {key: value for key, value in row.items() if key not in _CLOCK and not key.startswith("time/")}


def configure(folder: Path, text: str, *overrides: str) -> Config:
    """The configuration in `text`, with its run folder below `folder`."""
    path = folder / "options.yml"
    path.write_text(text)
    return load(path, [f"path.experiments={folder}", *overrides])


def trainer(folder: Path, text: str, *overrides: str) -> Trainer:
    """A trainer that has not begun."""
    return Trainer(configure(folder, text, *overrides))


def batches(trainer: Trainer, count: int) -> list[dict[str, Any]]:
    """The first batches of the run."""
    with trainer._loader() as loader:
        return [next(loader) for _ in range(count)]


def rows(folder: Path, phase: str) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, without what depends on the wall clock."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [repeatable(row) for row in parsed if row["phase"] == phase]


def checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder."""
    return {
        f"{file.name}:{key}": value for file in sorted(path.glob("*.safetensors")) for key, value in load_file(file).items()
    }


def assert_same_tensors(first: Path, second: Path, names: Sequence[str] = ()) -> None:
    """Two checkpoint folders hold the same bits."""
    one, two = checkpoint_tensors(first), checkpoint_tensors(second)
    assert one.keys() == two.keys()
    assert len(one) > 0
    for key in names or one:
        assert one[key].dtype == two[key].dtype
        assert one[key].equal(two[key]), key
