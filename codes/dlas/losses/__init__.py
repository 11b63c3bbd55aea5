"""Losses: what a step minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlas.losses.base import Loss, LossResult, State
from dlas.registry import LOSSES

__all__ = ["Loss", "LossResult", "State", "create_loss"]

_KEYS_OF_THE_STEP = frozenset({"weight", "after", "before", "every"})


def create_loss(options: Mapping[str, Any]) -> Loss:
    """The loss that an entry under `losses` describes.

    Args:
        options: `type`, a name registered under LOSSES, and its options. `weight`, `after`, `before` and `every` belong to the
            step that uses the loss and are not looked at.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    name, rest = LOSSES.named(options)
    return LOSSES.create(name, {key: value for key, value in rest.items() if key not in _KEYS_OF_THE_STEP})
