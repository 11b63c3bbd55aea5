"""Telling that memory ran out, and saying so in a way that helps."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dlas.errors import TrainingError

EXPANDABLE = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
UPDATE_FIX = (
    "What it keeps for each weight does not depend on the batch: take an optimiser with less state (`sgd`, `adafactor`), leave "
    "out `train.ema`, or train a smaller network"
)

# Allocators and libraries that take memory of their own have no exception type for it but torch.OutOfMemoryError.
_MESSAGES = re.compile(
    r"can't allocate memory|not enough memory: you tried|(CUDA|HIP|MPS backend)( error:)? out of memory"
    r"|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|std::bad_alloc"
)
# These have other causes too. With (almost) no memory left on the device, or, of oneDNN, with a limit on the process's memory,
# that is the cause.
_SUSPECT_ON_CPU = re.compile(r"could not (create|execute) a (primitive|memory)|can't start new thread")
_SUSPECT = re.compile(
    r"CUBLAS_STATUS_NOT_INITIALIZED|CUDNN_STATUS_(NOT_SUPPORTED|INTERNAL_ERROR)|unable to find an engine", re.I
)
_ALMOST_NONE = 0.02  # share of the device's memory
_RESERVED = re.compile(r"([\d.]+) (bytes|KiB|MiB|GiB) is allocated by PyTorch.*? ([\d.]+) (bytes|KiB|MiB|GiB) is reserved")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_FRAGMENTED = 0.15  # share of what is allocated that lies unused between it


class StepOutOfMemoryError(TrainingError):
    """Memory ran out in the forward or backward pass of a step, which has left nothing behind.

    Args:
        step: name of the step.
        place: what it was doing.
        reason: what the allocator said.
    """

    def __init__(self, step: str, place: str, reason: str) -> None:
        super().__init__(f"out of memory in step '{step}', {place}: {reason}")
        self.step = step
        self.place = place
        self.reason = reason


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out: of the device, or of this machine."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError | StepOutOfMemoryError):
            return True
        if isinstance(error, RuntimeError):
            text = str(error)
            if _MESSAGES.search(text) or (_SUSPECT.search(text) and _device_is_full()):
                return True
            if _SUSPECT_ON_CPU.search(text) and address_space_left() is not None:
                return True
        error = error.__cause__
    return False


def reason(error: BaseException) -> str:
    """What the allocator said, in one line, and what to do if its memory is in pieces."""
    while error.__cause__ is not None and is_out_of_memory(error.__cause__):
        error = error.__cause__
    text = " ".join(str(error).split())
    message = re.split(
        r" (If reserved|Process \d+ has|Including non-PyTorch|Of the allocated|Error code|See documentation)", text
    )[0]
    message = re.sub(r"^\[enforce fail at .*?(?=\w+Allocator: )", "", message).rstrip(". ") or type(error).__name__
    unused = _unused_gaps(text)
    return f"{message}. {unused} lie unused in gaps: set {EXPANDABLE} in the environment" if unused else message


@contextmanager
def explained(what: str, fix: str) -> Iterator[None]:
    """Turns an error of memory within the block into one for the user.

    Args:
        what: what is done there.
        fix: what to change.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StepOutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise TrainingError(f"{what} ran out of memory: {reason(error)}. {fix}") from error


def release_memory(device: torch.device) -> None:
    """Gives back what a failed attempt has held. Slow: only for the rare moment after it."""
    gc.collect()  # frames of the failed attempt may refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def address_space_left() -> int | None:
    """Bytes that this process may still map, where it has such a limit (`ulimit -v`)."""
    try:
        import resource  # not on Windows

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return max(limit - pages * resource.getpagesize(), 0)
    except (ImportError, AttributeError, ValueError, OSError):
        return None


def _unused_gaps(message: str) -> str:
    """How much lies between what is allocated, if that is much."""
    found = _RESERVED.search(message)
    if found is None:
        return ""
    allocated, unused = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
    return f"{found[3]} {found[4]}" if unused > _FRAGMENTED * allocated else ""


def _device_is_full() -> bool:
    if not torch.cuda.is_initialized():
        return False
    free, total = torch.cuda.mem_get_info()
    return free < _ALMOST_NONE * total
