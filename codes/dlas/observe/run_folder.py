"""The folder of a run: what lies where, and what is written at the start."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from dlas.config import Config, to_plain
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
            shutil.copyfile(source, self.path / "config.yml")
        resolved = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)
        _replace_text(self.path / "config.resolved.yml", resolved)
        _replace_text(self.path / "environment.json", json.dumps(environment(device), indent=1))

    def forget_after(self, step: int, validated: bool = True) -> None:
        """Drops the rows of metrics.jsonl that lie after `step`: the run goes on from there and will write them again.

        Args:
            step: completed iterations of the checkpoint; below 0 drops all rows.
            validated: whether the validation of just this step came before the checkpoint; its rows are dropped otherwise.
        """
        if not self.metrics.exists():
            return
        last = {"train": step, "val": step if validated else step - 1}
        text = self.metrics.read_text(encoding="utf-8", errors="replace")
        kept = "".join(line + "\n" for line in text.splitlines() if _is_row_up_to(last, line))
        if kept != text:
            _replace_text(self.metrics, kept)


def _is_row_up_to(last: dict[str, int], line: str) -> bool:
    try:
        row = json.loads(line)
        return bool(row["step"] <= last[row["phase"]])
    except (ValueError, KeyError, TypeError):  # cut off when the run was killed, or filled with zeros by a crash of the system
        return False


def environment(device: str) -> dict[str, Any]:
    """Versions, device and command, as in environment.json."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpu_count": os.cpu_count(),
        "packages": versions,
    }


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
