"""Quantisers that an autoencoder's option `quantizer` names; one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlas.layers.vector_quantizer import Quantizer
from dlas.registry import QUANTIZERS

__all__ = ["create_quantizer"]


def create_quantizer(options: Mapping[str, Any], codes: int, channels: int) -> Quantizer:
    """The quantiser that options name.

    Args:
        options: its name under `type`, and its own.
        codes: how many codes there are.
        channels: of the vectors that they replace.

    Raises:
        ConfigurationError: no quantiser has that name, an option is unknown, or it cannot have so many codes.
    """
    name, rest = QUANTIZERS.named(options)
    return QUANTIZERS.create(name, rest, codes, channels)
