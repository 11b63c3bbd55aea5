"""Degradations: how the low-quality image of a training pair is made from the high-quality one.

A degradation *draws* a recipe, a list of operations with all their parameters, from a random generator; `host` carries recipes
out on NumPy images (in the data loader), `device` on batches of tensors (where the network runs). The parameters are the same
on both; only the pixels of random noise differ, since the generators do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlas.degradations.base import Degradation
from dlas.registry import DEGRADATIONS

__all__ = ["Degradation", "create_degradation"]


def create_degradation(options: Mapping[str, Any]) -> Degradation:
    """The degradation that a `degradation:` entry describes.

    Args:
        options: `type`, a name registered under DEGRADATIONS, and its options.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    degradation: Degradation = DEGRADATIONS.create(*DEGRADATIONS.named(options))
    return degradation
