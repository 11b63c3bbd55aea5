"""Injectors: small pieces of a step that read state keys and write new ones. One file per family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlas.errors import ConfigurationError
from dlas.injectors.base import Injector, State
from dlas.registry import INJECTORS

__all__ = ["Injector", "State", "create_injector"]

# Keys that stand beside an injector's options and belong to the step that runs it.
STEP_KEYS = frozenset({"type", "after", "before", "every", "train", "eval", "no_grad", "no_accum"})


def create_injector(options: Mapping[str, Any]) -> Injector:
    """Builds the injector that one entry under `injectors:` describes.

    Args:
        options: `type` and the injector's options. The step's keys (`after`, `before`, `every`, `train`, `eval`, `no_grad`,
            `no_accum`) may be among them and are left to the step.

    Raises:
        ConfigurationError: `type` is missing or not registered, or an option is unknown or missing.
    """
    if "type" not in options:
        raise ConfigurationError(f"an injector needs 'type'; given: {', '.join(options) or 'nothing'}")
    injector: Injector = INJECTORS.create(options["type"], {k: v for k, v in options.items() if k not in STEP_KEYS})
    return injector
