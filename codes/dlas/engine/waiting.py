"""Operations that let the loop wait for the GPU: where they are a fault, and where they are meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def waiting_told(mode: Literal["warn", "error"] | None) -> Iterator[None]:
    """Within it, torch warns of an operation that waits for a CUDA device, or refuses it; with None nothing changes.

    It knows of copies to the host and of what needs a value there (`item`, `nonzero`, an index of truth values), and of copies
    from the host that block. Waiting for an event or a stream goes unseen.
    """
    if mode is None:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def waiting_meant() -> Iterator[None]:
    """Within it, waiting for the device is what is wanted, also within `waiting_told`."""
    if not torch.cuda.is_initialized() or torch.cuda.get_sync_debug_mode() == 0:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
