"""Buffers as they were before an attempt: running statistics, counters, code books."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class BufferBackup:
    """Keeps copies of all buffers of some modules; nothing waits for the device.

    Args:
        modules: the modules. Buffers may be replaced by other tensors, and come and go, at any time.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list({id(m): m for module in modules for m in module.modules()}.values())
        self._held: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        self._copies: dict[int, Tensor] = {}

    @torch.no_grad()
    def save(self) -> None:
        """Takes their present contents, into the same memory as the last time where they still fit."""
        self._held = [(m._buffers, name, buffer) for m in self._modules for name, buffer in m._buffers.items()]
        copies: dict[int, Tensor] = {}
        known: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # lists of one type are copied by one kernel
        for _, _, buffer in self._held:
            if buffer is None or id(buffer) in copies:
                continue
            copy = self._copies.get(id(buffer))
            if copy is not None and (copy.shape, copy.dtype, copy.device) == (buffer.shape, buffer.dtype, buffer.device):
                targets, sources = known.setdefault(buffer.dtype, ([], []))
                targets.append(copy)
                sources.append(buffer.detach())
            else:
                copy = buffer.detach().clone()
            copies[id(buffer)] = copy
        self._copies = copies
        for targets, sources in known.values():
            torch._foreach_copy_(targets, sources)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back the tensors and what was in them."""
        for module in self._modules:
            module._buffers.clear()
        for holder, name, buffer in self._held:
            holder[name] = buffer
            if buffer is not None:
                buffer.copy_(self._copies[id(buffer)])
