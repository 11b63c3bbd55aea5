"""Buffers that every rank changes in its own way: the running statistics of normalisation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed
from torch import Tensor, nn

_NORMS = nn.modules.batchnorm._NormBase


class BufferSharing:
    """Gives buffers the values of rank 0, where they may have changed since the last time. Others cost nothing.

    In-place changes are counted by torch; a module of whose buffers one has changed is taken as a whole, since kernels of
    normalisation do not count theirs.
    """

    def __init__(self) -> None:
        self._versions: dict[int, tuple[tuple[int, int], ...]] = {}

    @torch.no_grad()
    def share(self, modules: Iterable[nn.Module]) -> None:
        """Every rank must call it, with the same modules."""
        changed: list[Tensor] = []
        seen: dict[int, tuple[nn.Module, list[Tensor]]] = {}
        for module in modules:
            for each in module.modules():
                own = [buffer for buffer in each._buffers.values() if buffer is not None and buffer.numel()]
                if own and id(each) not in seen:
                    seen[id(each)] = each, own
                    tracks = isinstance(each, _NORMS) and each.training and each.track_running_stats
                    if tracks or self._versions.get(id(each), _versions(own)) != _versions(own):
                        changed += own
        _broadcast(changed)
        self._versions = {key: _versions(own) for key, (_, own) in seen.items()}


def _versions(buffers: list[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((id(buffer), buffer._version) for buffer in buffers)


def broadcast(modules: Iterable[nn.Module]) -> None:
    """Gives all parameters and buffers the values that they have on rank 0."""
    tensors: dict[int, Tensor] = {}
    for module in modules:
        tensors.update((id(each), each.detach()) for each in (*module.parameters(), *module.buffers()))
    _broadcast([each for each in tensors.values() if each.numel()])


@torch.no_grad()
def _broadcast(tensors: list[Tensor]) -> None:
    """One message for each type of numbers."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for same in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in same])
        torch.distributed.broadcast(flat, 0)
        for tensor, values in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(values.view(tensor.shape))
