"""Which small pictures of a set without a division of its own are for validation."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def is_held_out(pixels: npt.NDArray[np.uint8]) -> bool:
    """A tenth of all pictures, told by their pixels alone, so that equal ones are on the same side."""
    return hashlib.sha256(pixels.tobytes()).digest()[0] < 26
