"""A folder of encoded samples.

======================  ========================================================================================================
file                    content
======================  ========================================================================================================
``plan.json``           what the results depend on; written first
``00000.safetensors``   samples in their order: for each entry a tensor (samples, views, ...); of one whose sizes differ within
                        the part all numbers in a row, and in ``<entry>.shapes`` (samples, views, dimensions) the sizes
``00000.json``          their texts, for each entry a list of samples of lists of views
``store.json``          how many samples each part has, and their entries; written last: with it the folder is complete
======================  ========================================================================================================

Each file is written whole or not at all, the texts of a part before its tensors, so that what a killed process leaves is taken
up by the next one.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dlas.data.base import Sample, TensorSpec
from dlas.data.images.files import write_whole
from dlas.errors import ConfigurationError, DataError, printable

VERSION = 1
_PLAN, _STORE = "plan.json", "store.json"
_HINT = "make it with `dlas data encode -opt FILE`"

SHAPES = ".shapes"
"""Ends the name of what tells the sizes of an entry."""

Plan = dict[str, Any]
"""What the results depend on, as JSON can hold it."""


def normalised(plan: Mapping[str, Any]) -> Plan:
    """As it is after a way through a file."""
    found: Plan = json.loads(json.dumps({"version": VERSION, **plan}))
    return found


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """In words, what is not the same in two plans: `networks.autoencoder.weights was 1a2b and is 3c4d`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys((*old, *new))
        return [words for key in keys for words in differences(old.get(key), new.get(key), f"{at}.{key}".strip("."))]
    return [] if old == new else [f"{at} was {_short(old)} and is {_short(new)}"]


def _short(value: Any) -> str:
    return "not there" if value is None else value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Share:
    """Which parts are one process's, of several that fill a folder together.

    Args:
        number: of the process.
        count: of processes.
    """

    number: int
    count: int

    def has(self, part: int) -> bool:
        """Whether a part is this process's."""
        return part % self.count == self.number

    def name(self, name: str) -> str:
        """A name of this process's own."""
        return name if self.count == 1 else f"{name}.{self.number}"


WHOLE = Share(0, 1)


class Writer:
    """Fills a folder, or goes on filling one that the same plan began.

    Args:
        folder: made if it is missing.
        plan: what the results depend on.
        overwrite: remove first what another plan left there.
        share: which parts this process writes; the others are left alone.

    Raises:
        ConfigurationError: the folder holds something else, or results of another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], *, overwrite: bool = False, share: Share = WHOLE) -> None:
        self.folder = folder
        self.share = share
        wanted = normalised(plan)
        if (folder / _PLAN).is_file():
            changed = differences(_read(folder / _PLAN), wanted)
            if changed and not overwrite:
                raise ConfigurationError(
                    f"{printable(folder)} was encoded otherwise: {'; '.join(changed)}. Give another folder, or --overwrite to "
                    "encode anew"
                )
            if changed:
                self._clear()
        elif folder.is_dir() and any(not path.name.startswith(("lock", ".plan.json.")) for path in folder.iterdir()):
            raise ConfigurationError(
                f"{printable(folder)} holds files that were not made by this command, and nothing is overwritten; give "
                "another folder"
            )
        for temporary in folder.glob(".[0-9]*.tmp"):
            if share.has(int(temporary.name[1:].partition(".")[0])):
                temporary.unlink()
        if not (folder / _PLAN).is_file():
            write_whole(folder / _PLAN, json.dumps(wanted, indent=1).encode())

    def _clear(self) -> None:
        (self.folder / _STORE).unlink(missing_ok=True)  # first: without it the folder is not complete
        for path in (*self.folder.glob("[0-9]*.safetensors"), *self.folder.glob("[0-9]*.json"), self.folder / _PLAN):
            path.unlink()

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / _STORE).is_file()

    def has(self, part: int) -> bool:
        """Whether a part is there."""
        return _file(self.folder, part).is_file()

    def put(self, part: int, tensors: Mapping[str, Tensor], texts: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Writes a part.

        Args:
            part: its number.
            tensors: (samples, views, ...) each; there is at least one. Of entries that differ in size, as of `in_a_row`. Whole
                numbers of 64 bits take as many bits as they need.
            texts: for each entry, for each sample, one text a view.
        """
        write_whole(_file(self.folder, part).with_suffix(".json"), json.dumps(texts).encode())
        write_whole(_file(self.folder, part), save({key: _narrow(value).contiguous() for key, value in tensors.items()}))

    def finish(self, parts: int) -> None:
        """Says that all parts are there."""
        rows = []
        shapes: dict[str, list[Any]] = {}
        uneven: set[str] = set()
        views, texts = 1, []
        for part in range(parts):
            with _opened(_file(self.folder, part)) as file:
                count = [0, 1]
                for key, (dtype, count, sizes) in _layout(file).items():  # noqa: B007  # the same for all entries
                    known = shapes.setdefault(key, [dtype, *sizes])
                    if known[1:] != sizes or f"{key}{SHAPES}" in file.keys():  # noqa: SIM118  # it is no mapping
                        uneven.add(key)
                        shapes[key] = [dtype, *map(max, known[1:], sizes)]
                rows.append(count[0])
                views = count[1]
            texts = sorted(_read(_file(self.folder, part).with_suffix(".json")))
        content = {"rows": rows, "views": views, "tensors": shapes, "uneven": sorted(uneven), "texts": texts}
        write_whole(self.folder / _STORE, json.dumps(content, indent=1).encode())


class Store:
    """Reads a complete folder. Tensors are mapped: a sample reads its own bytes and no more.

    Attributes:
        plan: what the results depend on.
        views: how often each sample was encoded.
        keys: of a sample's entries.
        uneven: those that differ in size between samples.

    Raises:
        DataError: the folder is missing, not complete, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / _STORE).is_file():
            begun = len([*folder.glob("[0-9]*.safetensors")]) if (folder / _PLAN).is_file() else 0
            state = f"is not complete ({begun} parts are there)" if begun else "holds no encoded samples"
            raise DataError(f"{printable(folder)}: {state}; {_HINT}")
        content = _read(folder / _STORE)
        self.plan: Plan = _read(folder / _PLAN)
        if self.plan.get("version") != VERSION:
            raise DataError(f"{printable(folder)}: was written by another version of this program; encode it anew")
        self.views: int = content["views"]
        self._tensors: dict[str, list[Any]] = content["tensors"]
        self._texts: list[str] = content["texts"]
        self.uneven = frozenset(content.get("uneven", ()))  # older folders have none
        self._ends = list(accumulate(content["rows"]))
        self._open: dict[int, _Part] = {}
        for part in range(len(self._ends)):
            for path in (_file(folder, part), _file(folder, part).with_suffix(".json")):
                if not path.is_file():
                    raise DataError(f"{printable(path)} is missing; {_HINT.replace('make it', 'make it again')}")

    @property
    def keys(self) -> list[str]:
        return [*self._tensors, *self._texts]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # mapped files cannot be sent to another process

    def spec(self, keys: Sequence[str]) -> Sample:
        """What a sample looks like, of these entries; numbers are float32 whatever they are stored as."""
        return {key: _spec(*self._tensors[key]) if key in self._tensors else "a text" for key in keys}

    def read(self, index: int, view: int, keys: Sequence[str]) -> Sample:
        """Entries of one view of a sample; numbers of half precision become float32."""
        part, row = self._place(index)
        return {
            key: _readable(part.tensor(key, row, view)) if key in self._tensors else part.texts[key][row][view] for key in keys
        }

    def lengths(self, key: str) -> list[int]:
        """The last size of an entry of each sample, in its first view."""
        return [part.size(key, row) for part, row in map(self._place, range(len(self)))]

    def _place(self, index: int) -> tuple[_Part, int]:
        part = bisect.bisect_right(self._ends, index)
        if part not in self._open:
            path = _file(self.folder, part)
            self._open[part] = _Part(_opened(path), _read(path.with_suffix(".json")))
        return self._open[part], index - (self._ends[part - 1] if part else 0)


class _Part:
    """An open file.

    Args:
        file: its tensors.
        texts: for each entry, for each sample, one a view.
    """

    def __init__(self, file: Any, texts: dict[str, Any]) -> None:
        self.texts = texts
        self._file = file
        self._shapes = {key.removesuffix(SHAPES): file.get_tensor(key) for key in file.keys() if key.endswith(SHAPES)}  # noqa: SIM118
        self._ends = {key: shapes.prod(-1).flatten().cumsum(0).view(shapes.shape[:2]) for key, shapes in self._shapes.items()}

    def tensor(self, key: str, row: int, view: int) -> Tensor:
        """One view of an entry of a sample."""
        numbers = self._file.get_slice(key)
        if key not in self._shapes:
            return numbers[row][view]
        shape, end = self._shapes[key][row, view].tolist(), int(self._ends[key][row, view])
        return numbers[end - math.prod(shape) : end].view(shape)

    def size(self, key: str, row: int) -> int:
        """The last size of an entry of a sample."""
        shape = self._shapes[key][row, 0] if key in self._shapes else self._file.get_slice(key).get_shape()[2:]
        return int(shape[-1])


def in_a_row(values: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Samples of views that differ in size, as a part keeps them: all numbers, and the sizes (samples, views, dimensions).

    Raises:
        ValueError: they differ in their number of dimensions.
    """
    if len({each.dim() for views in values for each in views}) > 1:
        raise ValueError("samples have different numbers of dimensions")
    numbers = torch.cat([each.reshape(-1) for views in values for each in views])
    return numbers, torch.tensor([[list(each.shape) for each in views] for views in values])


def _layout(file: Any) -> dict[str, tuple[str, list[int], list[int]]]:
    """Of each entry of a part: type, (samples, views), and the largest sizes."""
    found = {}
    for key in file.keys():  # noqa: SIM118  # it is no mapping
        if not key.endswith(SHAPES):
            each = file.get_slice(key)
            if f"{key}{SHAPES}" in file.keys():  # noqa: SIM118
                sizes = file.get_tensor(f"{key}{SHAPES}")
                found[key] = each.get_dtype(), list(sizes.shape[:2]), sizes.flatten(0, 1).amax(0).tolist()
            else:
                found[key] = each.get_dtype(), each.get_shape()[:2], each.get_shape()[2:]
    return found


def _file(folder: Path, part: int) -> Path:
    return folder / f"{part:05d}.safetensors"


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{printable(path)}: is damaged ({error}); remove it and store.json, and encode again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{printable(path)}: cannot be read ({error}); remove the folder and encode again") from error
    return found


def _narrow(value: Tensor) -> Tensor:
    """Codes of 64 bits in the fewest that hold them: 16 for codebooks of up to 32768 entries."""
    if value.dtype != torch.int64 or not value.numel():
        return value
    low, high = value.aminmax()
    fits = (kind for kind in (torch.int16, torch.int32) if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max)
    return value.to(next(fits, torch.int64))


def _spec(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(shape, torch.int64 if dtype.startswith(("I", "U")) else torch.bool if dtype == "BOOL" else torch.float32)


def _readable(value: Tensor) -> Tensor:
    if value.dtype in (torch.int16, torch.int32):
        return value.long()
    return value.float() if value.is_floating_point() else value
