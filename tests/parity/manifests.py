"""Compares a network's state dict with that of a published checkpoint, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlas.archs import create_network
from parity.harness import Fixture


def published_layout(fixture: Fixture) -> dict[str, Tensor]:
    """The published state dict as tensors without content."""
    keys = fixture.json.get("keys") or fixture.json["state_dict"]
    return {key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype) in keys.items()}


def check_layout(fixture: Fixture, options: Mapping[str, Any]) -> None:
    """Builds the network at its published size and asserts that the published state dict is its state dict.

    Args:
        fixture: a manifest.
        options: of `create_network`.
    """
    with torch.device("meta"):
        network = create_network(options)
    published = published_layout(fixture)
    count = fixture.json.get("n_tensors", fixture.json.get("n_keys", len(published)))
    elements = fixture.json.get("n_elements", sum(tensor.numel() for tensor in published.values()))
    assert len(published) == count
    if hasattr(network, "rename_state_dict"):
        published = network.rename_state_dict(published)
    own = network.state_dict()
    assert _describe(own) == _describe(published)
    assert sum(tensor.numel() for tensor in own.values()) == elements
    network.load_state_dict(published, strict=True, assign=True)


def _describe(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state_dict.items()}
