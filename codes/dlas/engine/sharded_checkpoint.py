"""Checkpoints of which each process writes its part, planned by `torch.distributed.checkpoint`.

checkpoints/<step>/shard-00001.safetensors ...  tensors of the first process, of the second, ...
                   shards.json                  for each tensor its type, its shape, and which file has which part of it
                   state.json, manifest.json    as in any checkpoint

Tensors are called `<file>/<name>`, by what they would be in a whole checkpoint. Torch's own `FileSystemReader` unpickles its
metadata, so it is not used: shards are safetensors files, and what torch's planner asks for is in `shards.json`. In their
headers the shards tell what `torch.distributed.checkpoint.HuggingFaceStorageReader` asks for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, StorageReader, StorageWriter
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from dlas.engine import checkpoint
from dlas.engine.checkpoint import SHARDED, SHARDS, Like
from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.tensors import local
from dlas.engine.host_copy import HostCopy, Snapshot, contents
from dlas.engine.tensor_file import DTYPE_NAMES, DTYPES, bytes_of, layout_of
from dlas.errors import TrainingError
from dlas.observe import disk

# A single process writes in this way, too, if it is asked to.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

# ----------------------------------------------------------------------------------------------------------------- writing


class ShardCopy(HostCopy):
    """This process's part of a snapshot in host memory. What is not cut up belongs to the first process.

    Args:
        ranks: the processes.

    Attributes:
        plan: what of it is to be written, before the processes have agreed.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks
        self.plan = SavePlan([])
        self._known: dict[str, Any] = {}  # what it is the plan of
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of all processes' tensors."""
        return self._size

    def tensors(self) -> dict[str, Tensor]:
        """This process's parts by the names of their tensors."""
        return {_full_name(file, name): view for file, each in self.files.items() for name, view in each.views.items()}

    def _content(self, snapshot: Snapshot) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        content, state = contents(snapshot)
        self._size = sum(each.nbytes for tensors in content.values() for each in tensors.values())
        own = {
            file: {name: each for name, each in tensors.items() if self.ranks.main or hasattr(each, "device_mesh")}
            for file, tensors in content.items()
        }
        named = {_full_name(file, name): each for file, tensors in own.items() for name, each in tensors.items()}
        known = {name: (each.shape, each.dtype, getattr(each, "placements", None)) for name, each in named.items()}
        if known != self._known:  # planning takes longer than copying
            self.plan, self._known = create_default_local_save_plan(named, self.ranks.main), known
        return {file: {name: local(each) for name, each in tensors.items()} for file, tensors in own.items()}, state


def _full_name(file: str, name: str) -> str:
    return f"{file}/{name}"


@dataclass(frozen=True)
class Hooks:
    """What the first process calls; an error from one of them is an error of the whole.

    Args:
        begin: before anything is written.
        before: when all is written and nothing is published.
        after: with the new checkpoint.
    """

    begin: Callable[[], None] = lambda: None
    before: Callable[[], None] = lambda: None
    after: Callable[[Path], None] = lambda path: None


def publish(folder: Path, copy: ShardCopy, group: Any, hooks: Hooks) -> Path:
    """As `checkpoint.publish`, by all processes together: what fails in one of them fails in all.

    Args:
        folder: the run's `checkpoints` folder.
        copy: this process's part; it has arrived.
        group: the process group of torch through which they agree; None for a single process.
        hooks: called on the way.

    Returns:
        The new folder.

    Raises:
        OSError: something failed on a disk; older checkpoints are as they were.
        TrainingError: a weight is not finite.
    """
    storage = _Shards(folder, copy, hooks)
    try:
        dcp.save({}, storage_writer=storage, planner=_Planned(copy), process_group=group)
    except dcp.CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((each for each in causes if not isinstance(each, OSError)), causes[0]) from error
    return folder / str(copy.step)


class _Planned(DefaultSavePlanner):
    """Saves a copy by the plan that was made when it was taken. Of replicas one process writes, in turn."""

    def __init__(self, copy: ShardCopy) -> None:
        super().__init__(flatten_state_dict=False)
        self._copy = copy

    def create_local_plan(self) -> SavePlan:
        self.plan = self._copy.plan
        return self.plan


@dataclass(frozen=True)
class _Written:
    """A file, its size and its sha256."""

    name: str
    facts: dict[str, Any]


class _Shards(StorageWriter):
    """One file of safetensors for each process; the checkpoint appears when all are complete."""

    def __init__(self, folder: Path, copy: ShardCopy, hooks: Hooks) -> None:
        self._folder = folder
        self._copy = copy
        self._partial = folder / f".partial-{copy.step}"
        self._hooks = hooks

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Each object writes once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is made by the coordinator, when all have a plan."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Where every process looks at its part, and all hear of it."""
        bad = self._copy.not_finite()
        if bad:
            raise NotFiniteError(", ".join(bad))
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._hooks.begin()
        checkpoint.begin(self._folder, self._copy).mkdir()
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        if not plan.items:
            done.set_result([])
            return done
        name = f"shard-{self._copy.ranks.rank + 1:05d}.safetensors"
        parts = self._copy.tensors()
        tensors = {item.index.fqn: parts[item.index.fqn] for item in plan.items}
        assert len(tensors) == len(plan.items), "a process has one part of a tensor"
        offsets = {item.index.fqn: {"saved_offsets": list(item.index.offset or ())} for item in plan.items}
        written = _Written(name, disk.write_file(self._partial / name, _chunks(tensors, offsets)))
        done.set_result([WriteResult(item.index, tensors[item.index.fqn].nbytes, written) for item in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = {result.storage_data.name: result.storage_data.facts for each in results for result in each}
        text = json.dumps(_describe(metadata, results), separators=(",", ":")).encode()
        files[SHARDS] = disk.write_file(self._partial / SHARDS, [text])
        checkpoint.complete(self._partial, self._copy, files, SHARDED)
        self._hooks.before()
        self._hooks.after(checkpoint.appear(self._partial))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return False  # none is used


class NotFiniteError(TrainingError):
    """Networks with weights that are not finite, by name."""


def _chunks(tensors: Mapping[str, Tensor], offsets: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    header, places = layout_of(tensors, {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0"})
    yield header
    for name in places:
        yield from bytes_of(tensors[name])


def _describe(metadata: Metadata, results: list[list[WriteResult]]) -> dict[str, Any]:
    files = {result.index: result.storage_data.name for each in results for result in each}
    return {
        name: {
            "dtype": DTYPE_NAMES[entry.properties.dtype],
            "shape": list(entry.size),
            "parts": [
                {"file": files[MetadataIndex(name, part.offsets)], "offset": list(part.offsets), "shape": list(part.sizes)}
                for part in entry.chunks
            ],
        }
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


# ----------------------------------------------------------------------------------------------------------------- reading


def read(path: Path, like: Like | None = None, only: str | None = None) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by the files in which a whole one has them.

    Args:
        path: its folder, which was checked.
        like: the tensor of this run that is like a saved one. If it is cut up, so is what is read, and the process reads only
            what it keeps; all else is whole, on the CPU.
        only: the one file that is wanted.
    """
    reader = _ShardReader(path)
    metadata = reader.read_metadata()
    found: dict[str, dict[str, Tensor]] = {}
    wanted: dict[str, Tensor] = {}
    for full, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        file, _, name = full.partition("/")
        if only in (None, file):
            model = like(file, name) if like is not None else None
            wanted[full] = found.setdefault(file, {})[name] = _empty(entry, model)
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(wanted, metadata, is_coordinator=True)  # every process plans for itself: nothing is asked of others
    reader.read_data(planner.finish_plan(planner.create_local_plan()), planner)
    return found


def _empty(entry: TensorStorageMetadata, model: Tensor | None) -> Tensor:
    if model is not None and hasattr(model, "device_mesh") and model.shape == entry.size:
        return torch.empty_like(model.detach(), dtype=entry.properties.dtype)
    return torch.empty(entry.size, dtype=entry.properties.dtype)


class _ShardReader(StorageReader):
    """Reads what a plan asks for. No process reads more of a file than it needs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[MetadataIndex, str] = {}

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """There is nothing to reset."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        described = json.loads((self._path / SHARDS).read_text(encoding="utf-8"))
        entries: dict[str, Any] = {}
        for name, entry in described.items():
            chunks = [ChunkStorageMetadata(torch.Size(part["offset"]), torch.Size(part["shape"])) for part in entry["parts"]]
            properties = TensorProperties(dtype=DTYPES[entry["dtype"]])
            entries[name] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
            for part in entry["parts"]:
                if Path(part["file"]).name != part["file"]:
                    raise ValueError(f"{SHARDS} names {part['file']}, which is no file of the checkpoint")
                self._files[MetadataIndex(name, part["offset"])] = part["file"]
        return Metadata(entries)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """`read_metadata` has done it."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self._files[item.storage_index], []).append(item)
        for name, items in by_file.items():
            with safe_open(self._path / name, "pt") as file:
                for item in items:
                    ranges = zip(item.storage_offsets, item.lengths, strict=True)
                    place = tuple(slice(start, start + length) for start, length in ranges)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(file.get_slice(item.storage_index.fqn)[place])
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return False  # none is used
