"""Tensors that may be cut up among the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; a plain one is its own part."""
    if hasattr(tensor, "ds_tensor"):  # a parameter that DeepSpeed's ZeRO has cut up
        part: Tensor = tensor.ds_tensor
        return part
    # DTensor is not imported where nothing is cut up: that takes its time.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every rank that holds a part must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def cut_like(model: Tensor, values: Tensor) -> Tensor:
    """Whole values that every rank has, cut up as `model` is."""
    if hasattr(model, "ds_tensor"):
        return _cut_flat(model, values)
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


def kept(tensor: Tensor) -> Tensor:
    """What a module has of one of its tensors: the tensor, or the part where DeepSpeed's ZeRO keeps it elsewhere."""
    return local(tensor) if hasattr(tensor, "ds_tensor") else tensor


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of all of a tensor."""
    return torch.Size(getattr(tensor, "ds_shape", tensor.shape))


def whole_like(model: Tensor, part: Tensor) -> Tensor:
    """A tensor that is cut up as `model`, whole if DeepSpeed's ZeRO has cut that up; every rank must call it then."""
    if not hasattr(model, "ds_tensor"):
        return part
    ranks = torch.distributed.get_world_size()
    flat = part.new_empty(part.numel() * ranks)
    torch.distributed.all_gather_into_tensor(flat, part.contiguous())
    return flat[: whole_shape(model).numel()].view(whole_shape(model))


def _cut_flat(model: Tensor, values: Tensor) -> Tensor:
    """The part of this rank: rows of numbers of equal length, the last one filled up with zeros."""
    size = local(model).numel()
    flat = values.reshape(-1)
    start = min(torch.distributed.get_rank() * size, flat.numel())
    part = flat[start : start + size]
    return torch.nn.functional.pad(part, (0, size - part.numel())).to(local(model).device)
