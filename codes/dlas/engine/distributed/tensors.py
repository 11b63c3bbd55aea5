"""Tensors that may be cut up among the ranks."""

from __future__ import annotations

from torch import Tensor


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
