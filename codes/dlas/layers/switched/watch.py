"""What the gates of a network do, and their temperature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dlas.layers.switched.gate import Gate
from dlas.layers.switched.routing import Routed


def gates(network: nn.Module) -> dict[str, Gate]:
    """The gates of a network by the names of their layers."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, Gate)}
    return {name.removesuffix(".gate").removesuffix("gate"): gate for name, gate in found.items()}


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, Routed]]:
    """Collects what the gates make of their logits while the block runs.

    Yields:
        By names of layers, in the order of their calls; of a layer that is called several times the last one.
    """
    found: dict[str, Routed] = {}

    def watch(name: str, gate: Gate) -> None:
        gate.watcher = lambda routed: found.update({name: routed})

    own = gates(network)
    for name, gate in own.items():
        watch(name, gate)
    try:
        yield found
    finally:
        for gate in own.values():
            gate.watcher = None


def set_temperature(network: nn.Module, temperature: float) -> None:
    """Of all gates of a network.

    Raises:
        ValueError: it is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"the temperature of switches must be above 0, got {temperature}")
    for gate in gates(network).values():
        gate.temperature = temperature
