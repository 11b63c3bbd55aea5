"""Losses: what a step minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, LossResult, State
from dlas.registry import LOSSES

__all__ = ["Loss", "LossResult", "State", "create_loss"]

_KEYS_OF_THE_STEP = frozenset({"type", "weight", "after", "before", "every"})


def create_loss(options: Mapping[str, Any]) -> Loss:
    """The loss that an entry under `losses` describes.

    Args:
        options: `type`, a name registered under LOSSES, and its options. `weight`, `after`, `before` and `every` belong to the
            step that uses the loss and are not looked at.

    Raises:
        ConfigurationError: `type` is missing or unknown, or an option is unknown, missing or wrong.
    """
    if "type" not in options:
        raise ConfigurationError(f"a loss needs a type, one of: {', '.join(LOSSES.entries())}; given: {dict(options)}")
    return LOSSES.create(options["type"], {key: value for key, value in options.items() if key not in _KEYS_OF_THE_STEP})
