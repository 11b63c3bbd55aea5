"""Mixed precision: where autocast applies, and the gradient scaler that only fp16 needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dlas.errors import ConfigurationError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types by the names that they have in YAML."""


class Precision:
    """Autocast for one precision on one device.

    Weights stay float32; bf16 needs no scaler because its exponent range is that of float32.

    Args:
        name: fp32, bf16 or fp16, or `auto`: bf16 where the device computes in it, else fp16 on a GPU and fp32 on a CPU.
        device: the device.

    Attributes:
        name: the precision that was chosen.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = "bf16" if has_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
        elif name == "bf16" and device.type == "cuda" and not has_bf16(device):
            raise ConfigurationError("precision: bf16: this GPU has no bfloat16; write 'precision: fp16' or 'auto'")
        self.name = name
        self.device = device
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if name == "fp32" else lambda: torch.autocast(device.type, DTYPES[name])
        )

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """A scaler for one optimiser's loss; None unless the precision is fp16."""
        return torch.amp.GradScaler(self.device.type) if self.name == "fp16" else None


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16. Emulation does not count: it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if torch.cpu._is_avx512_bf16_supported():  # the public query is newer than the oldest torch that is supported
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("bf16"))
