"""A copy of a run's state in host memory: the run goes on and changes the original while the copy is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlas.engine.tensor_file import TensorFile

OPTIMIZERS = "optimizers.safetensors"
METER = "meter.safetensors"
STATE = "state.json"
_AT_ONCE = 32768  # values checked in one go: as many as torch still takes on one thread, so that training keeps the others


@dataclass
class Snapshot:
    """All that a checkpoint holds.

    Args:
        step: completed iterations.
        networks: state dict of each network.
        emas: state dict of each average.
        progress: counters and best figures, as JSON values.
        optimizers: nested state of optimisers, scalers and schedules (tensors and JSON values).
        meter: figures of the log row that is being averaged; empty at the end of a row, and in checkpoints of older versions.
        parameters: entries of `networks` that must be finite, or nothing is written.
    """

    step: int
    networks: dict[str, dict[str, Tensor]]
    emas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)
    meter: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, list[str]] = field(default_factory=dict)


class HostCopy:
    """Memory for one snapshot, used again by the next one."""

    def __init__(self) -> None:
        self.step = 0
        self.files: dict[str, TensorFile] = {}
        self.state = b""
        self._parameters: dict[str, list[str]] = {}
        self._arrivals: list[torch.cuda.Event] = []

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values()) + len(self.state)

    def prepare(self, snapshot: Snapshot) -> None:
        """Lays the files out; nothing is copied yet."""
        self._lay_out(self._content(snapshot)[0])

    def touch(self) -> None:
        """Takes the memory from the system, which takes longer than the copying."""
        for file in self.files.values():
            file.touch()

    def take(self, snapshot: Snapshot) -> None:
        """Copies. On CUDA devices the copies are queued behind what is computed now, and what is computed next behind them."""
        content, state = self._content(snapshot)
        self._lay_out(content)
        for name, tensors in content.items():
            self.files[name].copy(tensors)
        devices = {tensor.device for tensors in content.values() for tensor in tensors.values() if tensor.is_cuda}
        self._arrivals = []
        for device in devices:
            self._arrivals.append(torch.cuda.Event())
            self._arrivals[-1].record(torch.cuda.current_stream(device))
        self.step = snapshot.step
        self.state = json.dumps(state).encode()
        self._parameters = snapshot.parameters

    def wait(self) -> None:
        """Returns when everything has arrived."""
        for arrival in self._arrivals:
            arrival.synchronize()

    def not_finite(self) -> list[str]:
        """Networks with a parameter that is not finite."""
        found = []
        for network, names in self._parameters.items():
            views = self.files[f"{network}.safetensors"].views
            if not all(_finite(views[name]) for name in names if name in views):
                found.append(network)
        return found

    def _content(self, snapshot: Snapshot) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What goes into which file, and the JSON values."""
        return contents(snapshot)

    def _lay_out(self, content: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name in self.files.keys() - content.keys():
            del self.files[name]
        for name, tensors in content.items():
            if name not in self.files or not self.files[name].fits(tensors):
                self.files[name] = TensorFile(tensors)


def contents(snapshot: Snapshot) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by the names of files, and there by their own; and the JSON values."""
    optimizers: dict[str, Tensor] = {}
    meter: dict[str, Tensor] = {}
    state = {
        "step": snapshot.step,
        "progress": snapshot.progress,
        "optimizers": pack(snapshot.optimizers, optimizers),
        "meter": pack(snapshot.meter, meter),
    }
    files = {f"{name}.safetensors": each for name, each in snapshot.networks.items()}
    files.update({f"{name}.ema.safetensors": each for name, each in snapshot.emas.items()})
    # A file of its own, since its size changes: the memory of the others is used again.
    return {**files, OPTIMIZERS: optimizers, **({METER: meter} if meter else {})}, state


def _finite(tensor: Tensor) -> bool:
    return all(bool(part.isfinite().all()) for part in tensor.reshape(-1).split(_AT_ONCE))


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
