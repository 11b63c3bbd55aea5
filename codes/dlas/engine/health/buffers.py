"""Buffers (running statistics, spectral vectors, code books) change in the forward pass, before an update is judged."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class BufferKeeper:
    """Remembers buffers as they were before a step, and brings them back. Without buffers it costs nothing.

    Args:
        modules: networks and losses. Those of their modules that are in training mode are kept; others do not change theirs.
            Buffers may be replaced by other tensors, and come and go, at any time.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Modules keep these dicts for good, whatever becomes of the tensors in them; walking through a network takes its time.
        every = {id(each): each for module in modules for each in module.modules()}.values()
        self._places = [(module, module._buffers) for module in every]
        self._kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []  # holder, key, tensor, its copy
        self._keys: dict[int, tuple[str, ...]] = {}  # of each holder that has any, None included

    @torch.no_grad()
    def keep(self) -> None:
        """Copies every buffer, into the same memory as the last time where they are the same tensors."""
        holders = [holder for module, holder in self._places if holder and module.training]
        self._keys = {id(holder): tuple(holder) for holder in holders}
        places = [(holder, key, tensor) for holder in holders for key, tensor in holder.items() if tensor is not None]
        if [id(place[2]) for place in places] != [id(kept[2]) for kept in self._kept]:
            self._kept = [(*place, torch.empty_like(place[2])) for place in places]
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for _, _, tensor, copy in self._kept:  # lists of one type are copied by one kernel
            copies, tensors = by_type.setdefault(copy.dtype, ([], []))
            copies.append(copy)
            tensors.append(tensor)
        for copies, tensors in by_type.values():
            torch._foreach_copy_(copies, tensors)

    @torch.no_grad()
    def bring_back(self, held: Tensor | None = None) -> None:
        """Every buffer as it was at the last `keep`.

        Args:
            held: a number on the device: only if it is not 0. Nothing waits for it.
        """
        if held is None:
            for module, holder in self._places:
                if module.training and (holder or id(holder) in self._keys):
                    holder.clear()
                    holder.update(dict.fromkeys(self._keys.get(id(holder), ())))
        flag = None if held is None else held != 0
        for holder, key, tensor, copy in self._kept:
            present = holder.get(key)
            if flag is None or present is None:
                tensor.copy_(copy)
            elif present.shape == copy.shape:
                torch.where(flag, copy, present, out=tensor)
            else:
                continue  # of another shape now: what it was before cannot be chosen without waiting
            holder[key] = tensor  # the forward pass may have put another tensor in its place
