"""What users' functions tell of clips: texts, vectors, figures."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from dlas.data.plugin import load_function, plugin_file
from dlas.errors import ConfigurationError, DataError, printable

Clips = Sequence[npt.NDArray[np.float32]]
"""Mono, within [-1, 1], of any lengths."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Kind(Generic[Result]):
    """A kind of function.

    Args:
        title: for messages.
        name: of the function, where none is named.
        gives: its result in words.
        read: makes a list of results of what it gives for `count` clips; raises ValueError where it cannot.
    """

    title: str
    name: str
    gives: str
    read: Callable[[Any, int], list[Result]]


def _texts(given: Any, count: int) -> list[str]:
    if not isinstance(given, list) or len(given) != count or not all(isinstance(each, str) for each in given):
        raise ValueError
    return [each.strip() for each in given]


def _vectors(given: Any, count: int) -> list[list[float]]:
    array = np.asarray(given, dtype=np.float32)
    if array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
        raise ValueError
    found: list[list[float]] = array.tolist()
    return found


def _numbers(given: Any, count: int) -> list[float]:
    return [each for (each,) in _vectors(np.asarray(given, dtype=np.float32).reshape(-1, 1), count)]


RECOGNISER = Kind("recogniser", "transcribe", "a list of texts", _texts)
ENCODER = Kind("encoder", "embed", "vectors (clips, N)", _vectors)
FEATURES = Kind("features", "embed", "vectors (clips, N)", _vectors)
JUDGE = Kind("judge", "score", "a number for each clip", _numbers)


@dataclass(frozen=True)
class ClipFunction(Generic[Result]):
    """A user's function `(clips, rate, **options)`. It is imported where it is called, so that processes can share this.

    Args:
        kind: what it gives.
        reference: a Python file; `file.py:function` for a function of another name.
        options: names and values that it is called with.
    """

    kind: Kind[Result]
    reference: str
    options: tuple[tuple[str, str], ...] = ()

    def check(self) -> None:
        """Imports it.

        Raises:
            ConfigurationError: there is no such file or function, or it has no such option.
        """
        try:
            inspect.signature(_load(self)).bind([], 0, **dict(self.options))
        except TypeError as error:
            raise ConfigurationError(
                f"{self.kind.title} {printable(self.reference)}: {error}; it is called with (clips, rate) and the options given"
            ) from error

    @property
    def identity(self) -> str:
        """Changes with its file's content and its options."""
        file, name = plugin_file(self.reference)
        file = file.expanduser()
        text = f"{name} {self.options}".encode() + (file.read_bytes() if file.is_file() else b"")
        return f"{zlib.crc32(text):08x}"

    def __call__(self, clips: Clips, rate: int) -> list[Result]:
        """A result for each clip.

        Raises:
            DataError: it gives something else.
        """
        given = _load(self)(list(clips), rate, **dict(self.options))
        try:
            return self.kind.read(given, len(clips))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.kind.title} {printable(self.reference)}: gave {type(given).__name__} {printable(given)[:80]} for "
                f"{len(clips)} clips; expected {self.kind.gives}"
            ) from error


def _load(function: ClipFunction[Any]) -> Callable[..., Any]:
    return _imported(function.kind, function.reference, function.identity)


@lru_cache(maxsize=8)
def _imported(kind: Kind[Any], reference: str, identity: str) -> Callable[..., Any]:
    del identity  # a file that changes is imported again
    return load_function(reference, kind=kind.title, name=kind.name, gives=f"(clips, rate)' that gives {kind.gives}")
