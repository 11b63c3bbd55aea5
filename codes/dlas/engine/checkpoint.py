"""Checkpoint folders: complete or not there at all, checked by hash, and free of pickles.

checkpoints/<step>/<network>.safetensors        weights with the published key names
                   <network>.ema.safetensors    their average
                   optimizers.safetensors       tensors of the optimisers, scalers and schedules
                   meter.safetensors            figures of the log row that is being averaged, if there is one
                   state.json                   everything else that a restart needs
                   manifest.json                size and sha256 of each of the above, and of itself

or, with `checkpoints.format: sharded`, in place of the tensors' files those of `dlas.engine.sharded_checkpoint`.

checkpoints/latest                              name of the newest complete folder
checkpoints/best                                with `checkpoints.keep_best`: name of the best one

Names that begin with a dot are on their way in (`.partial-`) or out (`.removed-`, `.replaced-`); `tidy` sees to what a crash
left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dlas.engine.distributed.tensors import cut_like
from dlas.engine.host_copy import METER, OPTIMIZERS, STATE, HostCopy, Snapshot, pack, unpack
from dlas.errors import CheckpointError
from dlas.observe import disk

__all__ = ["Snapshot", "find_fault", "load", "newest", "pack", "point_to", "publish", "save", "tidy", "unpack"]

Like = Callable[[str, str], Tensor | None]
"""The tensor of the run that is like a saved one, by the file and the name that it has in a whole checkpoint."""

logger = logging.getLogger("dlas")
FORMAT = 1
SHARDED = 2  # the format in which each process writes its part
MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"
_PLAIN, _AVERAGE, _ANY = ".safetensors", ".ema.safetensors", "*.safetensors"
_SLACK = 1 << 16  # bytes beside the tensors and the state: the manifest, the pointer, the folder itself
SHARDS = "shards.json"  # of a sharded checkpoint: where the parts of each tensor are
_EXPECTED = {FORMAT: {STATE, OPTIMIZERS}, SHARDED: {STATE, SHARDS}}  # files that are there in any case
# Entries of an optimiser's groups that the configuration decides; schedules compute `lr` from `initial_lr`, and those that move
# momentum do so from the entries named after it. Other entries may be state (some optimisers count steps there) and come from
# the checkpoint.
_FROM_FILE = (
    *("initial_lr", "weight_decay", "eps", "betas", "momentum"),
    *("max_lr", "min_lr", "max_momentum", "base_momentum"),
)


# ----------------------------------------------------------------------------------------------------------------- writing


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Writes `folder`/<step>, at once and with one try. A run saves through `CheckpointWriter`.

    Args:
        folder: the run's `checkpoints` folder; made if it is missing.
        snapshot: what to save.

    Returns:
        The new folder.

    Raises:
        CheckpointError: it cannot be written; older checkpoints are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy = HostCopy()
    copy.take(snapshot)
    copy.wait()
    try:
        return publish(folder, copy)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {folder / str(snapshot.step)} cannot be written: {disk.reason(error)}. Older checkpoints are as they "
            "were: make room, and the same command goes on from the newest"
        ) from error


def write(path: Path, snapshot: Snapshot) -> None:
    """Writes one checkpoint as a new folder of any name, which appears when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    copy = HostCopy()
    copy.take(snapshot)
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(partial, copy)
    partial.rename(path)
    disk.sync_folder(path.parent)


def publish(folder: Path, copy: HostCopy, before: Callable[[], None] = lambda: None) -> Path:
    """Writes `folder`/<step>, which appears by a rename when every byte is on the disk, and then points `latest` to it.

    Args:
        folder: the run's `checkpoints` folder.
        copy: what to write; it has arrived.
        before: called when all is written and nothing is published; an error from it is an error of the whole.

    Returns:
        The new folder.

    Raises:
        OSError: something failed; older checkpoints are as they were.
    """
    partial = begin(folder, copy)
    try:
        _write(partial, copy)
        before()
    except OSError:
        with suppress(OSError):  # its bytes may be the ones that are missing elsewhere; else the next attempt finds it
            disk.remove_folder(partial)
        raise
    return appear(partial)


def begin(folder: Path, copy: HostCopy) -> Path:
    """Where a checkpoint is to be written, when what a crash left is tidied up and there is room for it.

    Raises:
        OSError: there is none.
    """
    tidy(folder)
    _check_room(folder, copy.size)
    return folder / f".partial-{copy.step}"


def appear(partial: Path) -> Path:
    """Gives a folder that is complete its name, and points `latest` to it."""
    folder, step = partial.parent, partial.name.removeprefix(".partial-")
    target = folder / step
    if os.path.lexists(target):  # the run went back to an older checkpoint and has come by here again
        replaced = folder / f".replaced-{step}"
        target.rename(replaced)
        partial.rename(target)
        disk.sync_folder(folder)
        disk.remove_folder(replaced)
    else:
        partial.rename(target)
    disk.sync_folder(folder)
    point_to(target)
    return target


def point_to(checkpoint: Path) -> None:
    """Makes `latest` name a checkpoint. A restart does so too: the run may have been killed before it came to that."""
    disk.replace_text(checkpoint.parent / LATEST, checkpoint.name)


def tidy(folder: Path) -> None:
    """Finishes or undoes what a crash interrupted. Only for the process that writes to the folder.

    Raises:
        OSError: the folder cannot be changed.
    """
    for path in sorted(folder.glob(".*-*")) if folder.is_dir() else []:
        kind, _, step = path.name.partition("-")
        if kind == ".replaced" and not os.path.lexists(folder / step):
            path.rename(folder / step)  # stopped between two renames; the newer one is thrown away unseen
        elif kind in (".partial", ".replaced", ".removed") and path.is_dir():
            disk.remove_folder(path)


def remove(path: Path) -> None:
    """Removes a checkpoint: it is gone at once, its files after that.

    Raises:
        OSError: it cannot be removed, or not wholly; `tidy` sees to the rest.
    """
    removed = path.with_name(f".removed-{path.name}")
    path.rename(removed)
    disk.sync_folder(path.parent)
    disk.remove_folder(removed)


def _check_room(folder: Path, size: int) -> None:
    free = disk.free_bytes(folder)
    if free is not None and free < size + _SLACK:
        words = f"the checkpoint takes {disk.amount(size)}, and {disk.amount(free)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {words}", str(folder))


def _write(partial: Path, copy: HostCopy) -> None:
    partial.mkdir()
    complete(partial, copy, {name: disk.write_file(partial / name, file.chunks()) for name, file in copy.files.items()})


def complete(partial: Path, copy: HostCopy, tensors: Mapping[str, Mapping[str, Any]], version: int = FORMAT) -> None:
    """Writes what stands beside the tensors, at last the manifest.

    Args:
        partial: the folder.
        copy: what is saved.
        tensors: size and sha256 of each file of tensors.
        version: of the format.
    """
    files = {**tensors, STATE: disk.write_file(partial / STATE, [copy.state])}
    manifest = {"format": version, "step": copy.step, "files": dict(sorted(files.items()))}
    text = json.dumps({**manifest, "sha256": _sum_of(manifest)}, indent=1)
    disk.write_file(partial / MANIFEST, [text.encode()])
    disk.sync_folder(partial)


def _sum_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


# ----------------------------------------------------------------------------------------------------------------- reading


def load(path: Path, like: Like | None = None, checked: bool = False) -> Snapshot:
    """Reads a checkpoint folder after checking every file against its manifest.

    Args:
        path: the folder.
        like: of a sharded checkpoint, tensors like those that are cut up here are read in part only.
        checked: another process has checked the files.

    Raises:
        CheckpointError: something is missing or damaged.
    """
    fault = None if checked else find_fault(path)
    if fault:
        raise CheckpointError(f"checkpoint {path}: {fault}{_what_was_meant(path)}")
    with _reading(path):
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        files = _tensors_of(path, like)
        optimizers = unpack(state["optimizers"], files.pop(OPTIMIZERS, {}))
        meter = unpack(state["meter"], files.pop(METER, {})) if "meter" in state else {}  # older ones have none
        averages = {name for name in files if name.endswith(_AVERAGE)}
        emas = {name.removesuffix(_AVERAGE): files.pop(name) for name in sorted(averages)}
        networks = {name.removesuffix(_PLAIN): tensors for name, tensors in files.items()}
        return Snapshot(state["step"], networks, emas, state["progress"], optimizers, meter)


def load_progress(path: Path) -> dict[str, Any]:
    """How far the run had come when a checkpoint was made; of the folder only that is read, and not checked."""
    with _reading(path):
        progress: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))["progress"]
        return progress


def tensor_files(path: Path) -> list[str]:
    """The files of tensors that a checkpoint has, or would have if it was whole.

    Raises:
        CheckpointError: it cannot be read.
    """
    with _reading(path):
        if is_sharded(path):
            return sorted({name.partition("/")[0] for name in json.loads((path / SHARDS).read_text(encoding="utf-8"))})
        return sorted(file.name for file in path.glob(_ANY))


def load_tensors(path: Path, file: str) -> dict[str, Tensor]:
    """The tensors of one of `tensor_files`; the checkpoint was checked.

    Raises:
        CheckpointError: it cannot be read.
    """
    with _reading(path):
        return _tensors_of(path, only=file)[file]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise CheckpointError(f"checkpoint {path}: its files are as they were written and cannot be read: {error!r}") from error


def _tensors_of(path: Path, like: Like | None = None, only: str | None = None) -> dict[str, dict[str, Tensor]]:
    """Tensors by the files in which a whole checkpoint has them."""
    if is_sharded(path):
        from dlas.engine import sharded_checkpoint

        return sharded_checkpoint.read(path, like, only)
    return {file.name: load_file(file) for file in sorted(path.glob(_ANY)) if only in (None, file.name)}


def is_sharded(path: Path) -> bool:
    """Whether each process has written its part of a checkpoint; False of what is none."""
    try:
        return bool(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["format"] == SHARDED)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if it is complete and unchanged."""
    try:
        return _find_fault(path)
    except OSError as error:
        return f"it cannot be read: {disk.reason(error)}"


def _find_fault(path: Path) -> str | None:
    if not path.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so this is not a checkpoint folder or it is incomplete"
    except (ValueError, RecursionError):
        return f"{MANIFEST} is damaged"
    if not isinstance(manifest, dict):
        return f"{MANIFEST} is damaged"
    version, files = manifest.get("format"), manifest.get("files")
    files = files if isinstance(files, dict) else {}
    if isinstance(version, int) and version > SHARDED:
        return f"format {version} was written by another version of this program; this one reads formats up to {SHARDED}"
    own = manifest.pop("sha256", None)  # not written by the first version
    expected_files = _EXPECTED.get(version) if isinstance(version, int) else None
    sound = expected_files is not None and manifest.keys() == {"format", "step", "files"}
    if not sound or (own is not None and own != _sum_of(manifest)) or not (expected_files or set()) <= files.keys():
        return f"{MANIFEST} is damaged"
    for name, expected in files.items():
        file = path / name
        if Path(name).name != name or not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
            return f"{MANIFEST} is damaged"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _sha256(file) != expected["sha256"]:
            return f"{name} is damaged: its sha256 is not the one in {MANIFEST}"
    for file in sorted(path.iterdir()):
        if file.name not in files and file.name != MANIFEST and not file.name.startswith("."):  # systems leave such files
            return f"{file.name} does not belong to it: {MANIFEST} does not list it"
    return None


def _what_was_meant(path: Path) -> str:
    """The likely intention behind a path that is no checkpoint folder."""
    if path.is_file():
        return "; this is a file, and a folder <run>/checkpoints/<step> is expected (for weights alone: path.pretrain)"
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    complete = [each for each in steps_in(folder).values() if (each / MANIFEST).is_file()]
    return f"; name one of the checkpoints in it, for instance {complete[-1]}" if complete else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by their steps, in ascending order, whatever their state."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdecimal()] if folder.is_dir() else []
    return {int(path.name): path for path in sorted(found, key=lambda path: int(path.name))}


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint under a run's `checkpoints` folder; damaged ones are named in the log and passed over."""
    for path in reversed(steps_in(folder).values()):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, fault)
    return None


def named(folder: Path, name: str) -> Path:
    """A complete checkpoint by what a user calls it.

    Args:
        folder: the run's `checkpoints` folder.
        name: `latest` (the newest complete one), `best`, or a step.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if name == LATEST:
        found = newest(folder)
        if found is None:
            raise CheckpointError(f"there is no complete checkpoint in {folder}; train it first")
        return found
    there = ", ".join(str(step) for step in steps_in(folder)) or "none"
    if name == BEST:
        try:
            name = (folder / BEST).read_text(encoding="utf-8").strip()
        except FileNotFoundError as error:
            raise CheckpointError(
                f"no best checkpoint is named in {folder}: train with 'checkpoints.keep_best', or take one of: {there}"
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder / BEST} cannot be read: {error}; take one of: {there}") from error
        if not name.isdecimal():
            raise CheckpointError(f"{folder / BEST} is damaged; take one of: {there}")
    if not name.isdecimal():
        raise CheckpointError(f"'{name}' is no checkpoint of {folder}: expected latest, best, or one of: {there}")
    fault = find_fault(folder / name)
    if fault:
        raise CheckpointError(f"checkpoint {folder / name}: {fault}; there are: {there}")
    return folder / name


def set_aside_after(folder: Path, step: int) -> None:
    """Renames the checkpoints of later steps: the run goes back, and they do not belong to what it will be from now on."""
    for number, path in steps_in(folder).items():
        if number > step:
            target = path.with_name(f"{path.name}.set-aside-{time.strftime('%Y%m%d-%H%M%S')}")
            path.rename(target)
            logger.info("set aside, since the run goes back to step %d: %s", step, target)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's state so that the next update is bit-identical to the one that would have followed.

    Where the file was edited since, its learning rate, weight decay and eps win over those in the checkpoint.

    Raises:
        CheckpointError: the state belongs to other parameters.
    """
    configured = [{key: group[key] for key in _FROM_FILE if key in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the optimiser's state in the checkpoint does not fit: {error}. The optimiser or the network was changed; "
            "start a new run (--resume never), with 'path.pretrain' for the weights"
        ) from error
    for group, values in zip(optimizer.param_groups, configured, strict=True):
        group.update(values)
    # Files hold whole, contiguous tensors; moments must be cut up and lie in memory as their parameter is and does.
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[key] = value = cut_like(parameter, value)
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
