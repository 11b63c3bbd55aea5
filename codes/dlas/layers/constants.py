"""Numbers of the host as tensors of the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def constant(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values, device=device, dtype=dtype)` without waiting for what the device has to do before it."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
