"""Checkpoint folders: complete or not there at all, checked by hash, and free of pickles.

checkpoints/<step>/<network>.safetensors        weights with the published key names
                   <network>.ema.safetensors    their average
                   optimizers.safetensors       tensors of the optimisers, scalers and schedules
                   state.json                   everything else that a restart needs
                   manifest.json                size and sha256 of each of the above
checkpoints/latest                              name of the newest complete folder
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlas.errors import CheckpointError

logger = logging.getLogger("dlas")
FORMAT = 1
OPTIMIZERS = "optimizers.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
# Entries of an optimiser's groups that the configuration decides; schedules compute `lr` from `initial_lr`, and those that move
# momentum do so from the entries named after it. Other entries may be state (some optimisers count steps there) and come from
# the checkpoint.
_FROM_FILE = (
    *("initial_lr", "weight_decay", "eps", "betas", "momentum"),
    *("max_lr", "min_lr", "max_momentum", "base_momentum"),
)


@dataclass
class Snapshot:
    """All that a checkpoint holds.

    Args:
        step: completed iterations.
        networks: state dict of each network.
        emas: state dict of each average.
        progress: counters and best figures, as JSON values.
        optimizers: nested state of optimisers, scalers and schedules (tensors and JSON values).
    """

    step: int
    networks: dict[str, dict[str, Tensor]]
    emas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, snapshot: Snapshot) -> Path:
    """Writes `folder`/<step>, which appears by a rename when every byte is on the disk, and then points `latest` to it.

    Args:
        folder: the run's `checkpoints` folder.
        snapshot: what to save.

    Returns:
        The new folder.

    Raises:
        CheckpointError: it cannot be written; older checkpoints are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / str(snapshot.step)
    for left_over in folder.glob(".partial-*"):  # of a run that was killed while it wrote
        shutil.rmtree(left_over, ignore_errors=True)
    partial = folder / f".partial-{snapshot.step}"
    try:
        _write(partial, snapshot)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {target} cannot be written: {error}; {shutil.disk_usage(folder).free / 2**20:.0f} MB are free there. "
            "Older checkpoints are as they were: make room, and the same command goes on from the newest"
        ) from error
    if target.exists():  # the run went back to an older checkpoint and has come by here again
        replaced = folder / f".replaced-{snapshot.step}"
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
        partial.rename(target)
        shutil.rmtree(replaced)
    else:
        partial.rename(target)
    _sync_folder(folder)
    pointer = folder / ".latest"
    _write_text(pointer, target.name)
    pointer.replace(folder / "latest")
    _sync_folder(folder)
    return target


def _write(partial: Path, snapshot: Snapshot) -> None:
    partial.mkdir()
    for name, weights in snapshot.networks.items():
        _save_tensors(partial / f"{name}.safetensors", weights)
    for name, weights in snapshot.emas.items():
        _save_tensors(partial / f"{name}.ema.safetensors", weights)
    tensors: dict[str, Tensor] = {}
    state = {"step": snapshot.step, "progress": snapshot.progress, "optimizers": pack(snapshot.optimizers, tensors)}
    _save_tensors(partial / OPTIMIZERS, tensors)
    _write_text(partial / STATE, json.dumps(state))
    files = {path.name: _fingerprint(path) for path in sorted(partial.iterdir())}
    _write_text(partial / MANIFEST, json.dumps({"format": FORMAT, "step": snapshot.step, "files": files}, indent=1))
    _sync_folder(partial)


def load(path: Path) -> Snapshot:
    """Reads a checkpoint folder after checking every file against its manifest.

    Raises:
        CheckpointError: something is missing or damaged.
    """
    fault = find_fault(path)
    if fault:
        raise CheckpointError(f"checkpoint {path}: {fault}{_what_was_meant(path)}")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    networks, emas = {}, {}
    for file in sorted(path.glob("*.safetensors")):
        if file.name.endswith(".ema.safetensors"):
            emas[file.name.removesuffix(".ema.safetensors")] = load_file(file)
        elif file.name != OPTIMIZERS:
            networks[file.name.removesuffix(".safetensors")] = load_file(file)
    optimizers = unpack(state["optimizers"], load_file(path / OPTIMIZERS))
    return Snapshot(state["step"], networks, emas, state["progress"], optimizers)


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if it is complete and unchanged."""
    if not path.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files: Mapping[str, Any] = manifest["files"]
        version = manifest["format"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so this is not a checkpoint folder or it is incomplete"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    if version != FORMAT:
        return f"format {version} was written by another version of this program; this one reads format {FORMAT}"
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _fingerprint(file) != expected:
            return f"{name} is damaged: its sha256 is not the one in {MANIFEST}"
    return None


def _what_was_meant(path: Path) -> str:
    """The likely intention behind a path that is no checkpoint folder."""
    if path.is_file():
        return "; this is a file, and a folder <run>/checkpoints/<step> is expected (for weights alone: path.pretrain)"
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = sorted((each.name for each in folder.glob("[0-9]*") if (each / MANIFEST).is_file()), key=len)
    return f"; name one of the checkpoints in it, for instance {folder / steps[-1]}" if steps else ""


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint under a run's `checkpoints` folder; damaged ones are named in the log and passed over."""
    steps = [path for path in folder.glob("[0-9]*") if path.name.isdigit()] if folder.is_dir() else []
    for path in sorted(steps, key=lambda p: int(p.name), reverse=True):
        fault = find_fault(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, fault)
    return None


def set_aside_after(folder: Path, step: int) -> None:
    """Renames the checkpoints of later steps: the run goes back, and they do not belong to what it will be from now on."""
    for path in list(folder.glob("[0-9]*")) if folder.is_dir() else []:
        if path.name.isdigit() and int(path.name) > step:
            target = path.with_name(f"{path.name}.set-aside-{time.strftime('%Y%m%d-%H%M%S')}")
            path.rename(target)
            logger.info("set aside, since the run goes back to step %d: %s", step, target)


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """A nested value as JSON; its tensors go into `tensors` under the paths where they stood."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        items = [[key, pack(item, tensors, f"{path}/{key}" if path else str(key))] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(item, tensors, f"{path}/{position}") for position, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be saved without pickling")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    seen: set[int] = set()
    flat = {}
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory (tied weights); each gets its own bytes.
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        flat[key] = tensor
    save_file(flat, path)
    _sync_file(path)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync_file(path)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    # Files hold contiguous tensors; moments must lie in memory as their parameter does, or fused kernels take another path.
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
