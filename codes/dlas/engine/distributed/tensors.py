"""Tensors that may be cut up among the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; a plain one is its own part."""
    # DTensor is not imported where nothing is cut up: that takes its time.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every rank that holds a part must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def cut_like(model: Tensor, values: Tensor) -> Tensor:
    """Whole values that every rank has, cut up as `model` is."""
    if not hasattr(model, "device_mesh") or hasattr(values, "device_mesh"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(model, DTensor)
    # None: nothing is sent, since every rank has read the same file.
    return distribute_tensor(values.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Within the context every rank has all weights of a network that is cut up, and may call it as often as it likes.

    All ranks must enter it. Weights must not be changed within it.
    """
    parts: list[Any] = [module for module in network.modules() if hasattr(module, "set_reshard_after_forward")]
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)
