"""Conditions of diffusion networks, and what stands for none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlas.diffusion.noise import without_condition
from dlas.errors import ConfigurationError


def check_unconditional(
    unconditional: Mapping[str, float] | None, conditions: Mapping[str, Any], needed: bool
) -> dict[str, float]:
    """What stands for no condition, by argument.

    Raises:
        ConfigurationError: it is needed and not there, or names something that is no condition.
    """
    values = dict(unconditional or {})
    unknown = values.keys() - conditions.keys()
    if unknown:
        raise ConfigurationError(
            f"unconditional: {', '.join(sorted(unknown))} is no argument under 'conditions', "
            f"which has: {', '.join(conditions) or 'nothing'}"
        )
    if needed and not values:
        raise ConfigurationError(
            "dropping conditions, or guidance, needs 'unconditional: {argument: what stands for no condition}'"
        )
    return values


def without(conditions: Mapping[str, Any], unconditional: Mapping[str, float], dropped: Tensor) -> dict[str, Any]:
    """Conditions with those of some samples replaced by what stands for none.

    Args:
        conditions: by argument, (B, ...) each.
        unconditional: the numbers that stand for none, by argument; other arguments stay.
        dropped: (B,), true where they are replaced.
    """
    replaced = dict(conditions)
    for argument, nothing in none_of(conditions, unconditional).items():
        replaced[argument] = without_condition(replaced[argument], nothing, dropped)
    return replaced


def none_of(conditions: Mapping[str, Any], unconditional: Mapping[str, float]) -> dict[str, Tensor]:
    """What stands for no condition, in the shape of the conditions, (B, ...) each."""
    return {argument: torch.full_like(conditions[argument], number) for argument, number in unconditional.items()}


def read_conditions(spec: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network: texts are state keys, anything else is the value itself."""
    return {argument: state[value] if isinstance(value, str) else value for argument, value in spec.items()}
