"""Buffers of networks (running statistics, spectral vectors) change in the forward pass, before an update is judged."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class BufferKeeper:
    """Remembers the buffers of networks as they were before a step, and brings them back. Without buffers it costs nothing.

    Args:
        networks: those in training mode are kept; others do not change their buffers.
        losses: their own buffers are kept; networks that they hold do not change.
    """

    def __init__(self, networks: Iterable[nn.Module], losses: Iterable[nn.Module] = ()) -> None:
        # Modules keep these dicts for good, whatever becomes of the tensors in them; walking through a network takes its time.
        self._places = [(network, [module._buffers for module in network.modules()]) for network in networks]
        self._places += [(loss, [loss._buffers]) for loss in losses]
        self._kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []  # holder, key, tensor, its copy

    @torch.no_grad()
    def keep(self) -> None:
        """Copies every buffer."""
        places = [
            (holder, key, tensor)
            for network, holders in self._places
            if network.training
            for holder in holders
            if holder
            for key, tensor in holder.items()
            if tensor is not None
        ]
        if [id(place[2]) for place in places] != [id(kept[2]) for kept in self._kept]:
            self._kept = [(*place, torch.empty_like(place[2])) for place in places]
        for floating in (True, False):  # one kernel for all of a type
            pairs = [(t, copy) for _, _, t, copy in self._kept if t.is_floating_point() == floating]
            if pairs:
                torch._foreach_copy_([copy for _, copy in pairs], [tensor for tensor, _ in pairs])

    @torch.no_grad()
    def bring_back(self, held: Tensor | None = None) -> None:
        """Every buffer as it was at the last `keep`.

        Args:
            held: a number on the device: only if it is not 0. Nothing waits for it.
        """
        flag = None if held is None else held != 0
        for holder, key, tensor, copy in self._kept:
            present = holder[key]
            if flag is None or present is None:
                tensor.copy_(copy)
            elif present.shape == copy.shape:
                torch.where(flag, copy, present, out=tensor)
            else:
                continue  # of another shape now: what it was before cannot be chosen without waiting
            holder[key] = tensor  # the forward pass may have put another tensor in its place
