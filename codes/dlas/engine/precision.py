"""Mixed precision: where autocast applies, and the gradient scaler that only fp16 needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dlas.errors import ConfigurationError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast for one precision on one device.

    Weights stay float32; bf16 needs no scaler because its exponent range is that of float32.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise ConfigurationError("precision: bf16: this GPU has no bfloat16; write 'precision: fp16'")
        dtype = _DTYPES.get(name)
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype)
        )

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """A scaler for one optimiser's loss; None unless the precision is fp16."""
        return torch.amp.GradScaler(self.device.type) if self.name == "fp16" else None
