"""The folder of a run: what lies where, and what is written at the start."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dlas.config import Config, to_yaml
from dlas.observe import disk
from dlas.observe.console import LOGGER
from dlas.observe.lock import locked

_PACKAGES = ("dlas", "torch", "numpy", "safetensors", "opencv-python-headless", "pillow", "scikit-image", "scikit-learn")


class RunFolder:
    """Paths below experiments/<name>."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "train.log"
        self.tensorboard = path / "tb"
        self.validation = path / "val"
        self.visuals = path / "visuals"
        self._places = (disk.Place(path, signed=True), disk.Place(self.checkpoints))
        self._told: set[tuple[str, int | None]] = set()

    def claim(self) -> None:
        """Makes the folders that the run writes to; from now on these are the ones."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for place in self._places:
            place.claim()

    def check(self) -> None:
        """Nothing, before `claim`.

        Raises:
            OSError: the folder has gone, or another one is in its place. It is never made anew: when the disk of a run is
                unmounted, that would be somewhere else.
        """
        for place in self._places:
            place.check()

    def dispensable(self, what: str, write: Callable[[], None]) -> None:
        """Writes what a run can do without: an error is told of once, and the run goes on."""
        try:
            self.check()
            write()
        except OSError as error:
            if (what, error.errno) not in self._told:
                LOGGER.warning("%s cannot be written: %s; training goes on without", what, disk.reason(error))
            self._told.add((what, error.errno))

    def set_aside(self) -> Path | None:
        """Renames an existing folder so that a new run can start; nothing is deleted. Returns its new place."""
        if not self.path.exists():
            return None
        target = self.path.with_name(f"{self.path.name}_archived_{time.strftime('%Y%m%d-%H%M%S')}")
        self.path.rename(target)
        return target

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this folder; the lock ends with the process, however it ends.

        Raises:
            TrainingError: another process has it.
        """
        with locked(self.path.with_name(f".{self.path.name}.lock"), f"training in {self.path}"):
            yield

    def describe(self, config: Config, source: Path | None, device: str) -> None:
        """Writes config.yml (as given), config.resolved.yml (with every default) and environment.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        if source is not None and source.is_file():
            disk.replace_text(self.path / "config.yml", source.read_bytes())
        disk.replace_text(self.path / "config.resolved.yml", to_yaml(config))
        disk.replace_text(self.path / "environment.json", json.dumps(environment(device), indent=1))

    def forget_after(self, step: int, validated: bool = True) -> None:
        """Drops the rows of metrics.jsonl that lie after `step`: the run goes on from there and will write them again.

        Args:
            step: completed iterations of the checkpoint; below 0 drops all rows.
            validated: whether the validation of just this step came before the checkpoint; its rows are dropped otherwise.
        """
        if not self.metrics.exists():
            return
        last = {"train": step, "val": step if validated else step - 1}
        before = self.metrics.read_text(encoding="utf-8", errors="replace")
        after = "".join(line + "\n" for line in before.splitlines() if _is_row_up_to(last, line))
        if after != before:
            disk.replace_text(self.metrics, after)


def _is_row_up_to(last: dict[str, int], line: str) -> bool:
    try:
        row = json.loads(line)
        return bool(row["step"] <= last[row["phase"]])
    except (ValueError, KeyError, TypeError):  # cut off when the run was killed, or filled with zeros by a crash of the system
        return False


def environment(device: str) -> dict[str, Any]:
    """Versions, device and command, as in environment.json."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
