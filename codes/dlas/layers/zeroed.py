"""Layers that add nothing at first."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def zeroed(layer: Layer) -> Layer:
    """The layer, with weights and biases of 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
