"""Builds the weights that a golden file describes instead of storing them, and checks each against its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def build_weight(key: str, entry: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Tensor | None:
    """One tensor of a state dict.

    Args:
        key: its name in the state dict.
        entry: `rule` and what the rule needs: `shape`, `dtype`, `seed`, `offset`, `scale`, `value`; `sha256_16`.
        stored: tensors of the safetensors file, for the rule ``stored``.

    Returns:
        The tensor; None where the constructor's own value is to be kept.

    Raises:
        ValueError: the rule is unknown, or the result is not the tensor that the reference had.
    """
    rule = entry["rule"]
    if rule.startswith("buffer: keep"):
        return None
    if rule == "stored":
        tensor = stored[f"state.{key}"]
    elif rule == "const":
        tensor = torch.full(entry["shape"], entry["value"], dtype=getattr(torch, entry["dtype"]))
    else:
        tensor = torch.from_numpy(_drawn(key, entry)).to(getattr(torch, entry["dtype"]))
    expected = entry.get("sha256_16")
    found = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
    if expected is not None and found != expected:
        raise ValueError(f"weight '{key}' (rule {rule}) has checksum {found}, the reference had {expected}")
    return tensor


def _drawn(key: str, entry: Mapping[str, Any]) -> np.ndarray:
    """float64; the legacy generator is frozen by numpy, so the numbers are the same in every version."""
    noise = np.asarray(np.random.RandomState(entry["seed"]).standard_normal(tuple(entry["shape"])))
    rule, scale = entry["rule"], entry["scale"]
    if rule == "affine":
        return entry["offset"] + scale * noise
    if rule == "abs":
        return entry["offset"] + scale * np.abs(noise)
    if rule == "eye":
        return np.eye(*entry["shape"]) + scale * noise
    raise ValueError(f"weight '{key}': unknown rule '{rule}'")
