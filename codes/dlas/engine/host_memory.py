"""Memory of the process on a CPU, where torch asks the C library for every tensor."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_OWN_CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Lets glibc keep the memory of freed tensors for the next ones, as the allocator for GPUs does.

    By default large tensors are mapped from the kernel and given back when freed, and the kernel fills each of their pages with
    zeros again in the next step. The peak stays what it is; between peaks memory is not given back.

    Returns:
        Whether it was done: not with another C library, nor where the environment sets glibc's thresholds itself.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _OWN_CHOICES):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(set_option(_MMAP_THRESHOLD, 2**30)) and bool(set_option(_TRIM_THRESHOLD, 2**31 - 1))
