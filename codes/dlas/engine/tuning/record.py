"""Finished measurements, kept in a file so that a stopped search goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlas.observe import disk


class Record:
    """Speeds and memory by stage, setting and round.

    Args:
        path: the JSON file; what is there is taken over if it was measured under the same circumstances.
        circumstances: file, device, versions: what measurements depend on.

    Attributes:
        stale: the file held measurements of other circumstances, which are dropped with the first new one.
    """

    def __init__(self, path: Path, circumstances: dict[str, Any]) -> None:
        self.path = path
        self.circumstances = circumstances
        self.stages: dict[str, dict[str, dict[str, Any]]] = {}
        self.stale = False
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            same = found["circumstances"] == circumstances
            self.stages = found["stages"] if same else {}
            self.stale = not same
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):  # not ours, or cut off by a crash of the system
            self.stale = True

    def of(self, stage: str, key: str) -> dict[str, Any]:
        """What is known of a setting: `speeds` by round (a text, as JSON has it), `memory` in bytes, `fits`.

        Of one that is compiled also `start`, or `failure` and the `patience` it had.
        """
        return self.stages.setdefault(stage, {}).setdefault(key, {"speeds": {}, "memory": None, "fits": True})

    def speeds(self, stage: str, key: str) -> dict[int, float]:
        """Samples per second by round."""
        return {int(number): speed for number, speed in self.of(stage, key)["speeds"].items()}

    @property
    def count(self) -> int:
        """Finished measurements."""
        return sum(len(each["speeds"]) for stage in self.stages.values() for each in stage.values())

    def save(self) -> None:
        """Writes the file: the old one or the new one is there at any time."""
        text = json.dumps({"circumstances": self.circumstances, "stages": self.stages}, indent=1)
        disk.replace_text(self.path, text + "\n")
