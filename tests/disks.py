"""Disks that misbehave: any file operation below a folder can fail, or be the last one before a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

BY_PATH = ("open", "mkdir", "rename", "replace", "unlink", "rmdir")
BY_HANDLE = ("write", "fsync", "close", "ftruncate")


class Crash(BaseException):
    """The process is no more: nothing that would tidy up is of any effect."""


class Disk:
    """Watches the operations that change something below a folder.

    Args:
        patch: pytest's monkeypatch.
        folder: only what lies below it counts.
        fault: called before each operation with its number (from 1) and name; what it raises is what the operation raises.
    """

    def __init__(self, patch: Any, folder: Path, fault: Callable[[int, str], None] = lambda number, name: None) -> None:
        self.folder = str(folder)
        self.fault = fault
        self.operations: list[str] = []
        self.dead = False
        self.unsynced: set[str] = set()
        self._paths: dict[int, str] = {}
        self._real = {name: getattr(os, name) for name in (*BY_PATH, *BY_HANDLE, "dup")}
        for name in BY_PATH:
            patch.setattr(os, name, self._by_path(name))
        for name in BY_HANDLE:
            patch.setattr(os, name, self._by_handle(name))
        patch.setattr(os, "dup", self._dup)

    def _count(self, name: str) -> None:
        if self.dead:
            raise Crash
        self.operations.append(name)
        try:
            self.fault(len(self.operations), name)
        except Crash:
            self.dead = True
            raise

    def _by_path(self, name: str) -> Callable[..., Any]:
        def operation(path: Any, *arguments: Any, **options: Any) -> Any:
            if not str(path).startswith(self.folder):
                return self._real[name](path, *arguments, **options)
            self._count(name)
            result = self._real[name](path, *arguments, **options)
            if name == "open":
                self._paths[result] = str(path)
            elif name in ("rename", "replace"):
                self.unsynced = {each.replace(str(path), str(arguments[0])) for each in self.unsynced}
            return result

        return operation

    def _by_handle(self, name: str) -> Callable[..., Any]:
        def operation(handle: int, *arguments: Any) -> Any:
            path = self._paths.get(handle)
            if path is None:
                return self._real[name](handle, *arguments)
            if name == "close":  # a crash closes everything
                del self._paths[handle]
                self._real["close"](handle)
                return self._count(name)
            self._count(name)
            if name == "write":
                self.unsynced.add(path)
            elif name == "fsync":
                self.unsynced.discard(path)
            return self._real[name](handle, *arguments)

        return operation

    def _dup(self, handle: int) -> int:
        copy: int = self._real["dup"](handle)
        if handle in self._paths:
            self._paths[copy] = self._paths[handle]
        return copy

    def lose_what_was_not_synced(self) -> None:
        """What a power failure does at its worst: files whose bytes were not on the disk keep their names and lose content."""
        for path in self.unsynced:
            if Path(path).is_file():
                content = Path(path).read_bytes()
                Path(path).write_bytes(content[: len(content) // 2])


def fails_at(number: int, error: int, times: int = 1) -> Callable[[int, str], None]:
    """The operations number, number + 1, ... fail, `times` of them; what was begun in a folder that cannot be cleaned stays."""

    def fault(count: int, name: str) -> None:
        if number <= count < number + times:
            raise OSError(error, os.strerror(error))

    return fault


def crashes_at(number: int) -> Callable[[int, str], None]:
    """The operation `number` and all later ones never happen."""

    def fault(count: int, name: str) -> None:
        if count >= number:
            raise Crash

    return fault
