"""Watching every operation that torch runs: memory that is alive, floating-point operations, bytes moved."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Kind = Literal["parameters", "buffers", "averages", "optimizer state", "batch", "gradients", "activations"]
"""What memory is held for. `activations` is everything that is none of the others: temporaries too."""


@dataclass(frozen=True)
class Operation:
    """What one call of one operator costs.

    Args:
        dtype: type in which it computes: that of its widest floating-point input, or of its result where it has none.
        flops: floating-point operations of matrix products and convolutions (a multiply-add is two); 0 for all others.
        moved: bytes read and written, each tensor once.
        count: how often it ran; costs are those of all calls together.
    """

    dtype: torch.dtype
    flops: int
    moved: int
    count: int = 1


@dataclass
class Peak:
    """The largest amount of memory that was alive at one time, and what it was held for, in bytes."""

    total: int = 0
    by_kind: dict[Kind, int] = field(default_factory=dict)


class Tracker(TorchDispatchMode):
    """Follows the birth and death of every storage, under fake tensors or real ones.

    A storage counts from the operation that makes it until the last tensor on it dies, whoever held it: Python, the graph that
    autograd keeps for the backward pass, the cache of autocast, the gradients. What a kernel takes for itself while it runs
    (workspaces of cuDNN and oneDNN) is not seen.

    Args:
        block: the allocator hands out multiples of this many bytes (512 on CUDA).
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.peak = Peak()
        self.operations: dict[str, list[Operation]] = {}
        self.part = ""
        self._block = block
        self._alive: dict[int, _Held] = {}
        self._by_kind: dict[Kind, int] = {}
        self._total = 0

    def hold(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Takes tensors into account that exist already, or moves what is known of them to another kind."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            held = self._alive.get(id(storage))
            if held is None:
                self._born(storage, kind)
            elif held.kind != kind:
                self._add(held.kind, -held.size)
                self._add(kind, held.size)
                held.kind = kind
        self._note_peak()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            storage = tensor.untyped_storage()
            if id(storage) not in self._alive:
                self._born(storage, "activations")
        self._note_peak()
        if not func.is_view:
            self._cost(func, args, kwargs or {}, result, outputs)
        return result

    def _cost(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, outputs: list[Tensor]) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **kwargs, out_val=result) if count is not None else 0
        floating = [t.dtype for t in (*inputs, *outputs) if t.is_floating_point()]
        dtype = max(floating, key=lambda d: d.itemsize, default=torch.float32)
        self.operations.setdefault(self.part, []).append(Operation(dtype, int(flops), moved))

    def _born(self, storage: torch.UntypedStorage, kind: Kind) -> None:
        size = -(-storage.nbytes() // self._block) * self._block
        key = id(storage)
        # The Python object of a storage lives as long as the storage does, so its death is that of the memory.
        self._alive[key] = _Held(size, kind, weakref.ref(storage, self._forget(key)))
        self._add(kind, size)

    def _forget(self, key: int) -> Callable[[Any], None]:
        alive, add = self._alive, self._add

        def died(_: Any) -> None:
            held = alive.pop(key)
            add(held.kind, -held.size)

        return died

    def _add(self, kind: Kind, size: int) -> None:
        self._by_kind[kind] = self._by_kind.get(kind, 0) + size
        self._total += size

    def _note_peak(self) -> None:
        if self._total > self.peak.total:
            self.peak = Peak(self._total, dict(self._by_kind))


@dataclass
class _Held:
    size: int
    kind: Kind
    reference: weakref.ref[torch.UntypedStorage]
