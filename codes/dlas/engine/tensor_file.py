"""A safetensors file in host memory, ready to be written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Name in the file's header, in the order in which the safetensors library lays tensors out: the widest first, so that each is
# aligned.
DTYPE_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: position for position, dtype in enumerate(DTYPE_NAMES)}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_CHUNK = 4 << 20  # bytes that are hashed and written in one go, both without Python's lock


class TensorFile:
    """The layout of a file and memory for its tensors, which is used again by the next file of the same layout.

    New memory is slow to write to (the system hands it out page by page), which is why it is kept.

    Args:
        tensors: what will be copied: its names, dtypes, shapes and devices count.

    Raises:
        TypeError: safetensors has no such dtype.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        unknown = {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype not in DTYPE_NAMES}
        if unknown:
            raise TypeError(f"safetensors cannot hold {unknown}")
        self._layout = _layout(tensors)
        self.header, places = layout_of(tensors)
        self.names, end = list(places), sum(tensor.nbytes for tensor in tensors.values())
        # Copies from a GPU into page-locked memory run beside everything else.
        self._pinned = any(tensor.is_cuda for tensor in tensors.values())
        self.memory = torch.empty(end, dtype=torch.uint8, pin_memory=self._pinned)
        self.views = {n: self.memory[places[n]].view(tensors[n].dtype).view(tensors[n].shape) for n in self.names}

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + len(self.memory)

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these tensors can be copied in."""
        return _layout(tensors) == self._layout

    def touch(self) -> None:
        """Takes the memory from the system now rather than during the first copy."""
        for part in self.memory.split(_CHUNK):
            part.zero_()

    def copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the tensors; those on a GPU may still be on their way (the caller waits for its stream)."""
        if self.names:
            sources = [tensors[name].detach() for name in self.names]
            torch._foreach_copy_([self.views[name] for name in self.names], sources, non_blocking=self._pinned)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the file."""
        yield self.header
        yield from bytes_of(self.memory)


def layout_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> tuple[bytes, dict[str, slice]]:
    """The header of a safetensors file, and where in the content behind it each tensor lies, in that order.

    Args:
        tensors: what the file holds; only dtypes and shapes count.
        metadata: texts in the header.
    """
    places: dict[str, slice] = {}
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name)):
        tensor = tensors[name]
        places[name] = slice(end, end := end + tensor.nbytes)
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [places[name].start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor on the CPU, in pieces."""
    content = memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    for start in range(0, len(content), _CHUNK):
        yield content[start : start + _CHUNK]


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bool]]:
    return {name: (tensor.dtype, tensor.shape, tensor.is_cuda) for name, tensor in tensors.items()}
