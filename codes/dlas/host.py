"""Tensors of the host on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def unattended(device: torch.device | str) -> bool:
    """Whether a copy to the device may be left to itself: for `non_blocking`.

    CUDA has taken pageable memory over when the call returns. MPS reads it later, when it may be freed already.
    """
    return torch.device(device).type != "mps"


def sent(values: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`values.to(device, dtype)` without waiting for what a GPU has to do before it."""
    return values.to(device, dtype or values.dtype, non_blocking=unattended(device))


def constant(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values, device=device, dtype=dtype)`, likewise."""
    return sent(torch.tensor(values, dtype=dtype), device)
