"""The engine: runs what a configuration describes. It knows no architecture by name."""

from __future__ import annotations

from typing import Any

__all__ = ["Trainer"]


def __getattr__(name: str) -> Any:
    if name == "Trainer":  # on first use: importing it brings torch
        from dlas.engine.trainer import Trainer

        return Trainer
    raise AttributeError(name)
