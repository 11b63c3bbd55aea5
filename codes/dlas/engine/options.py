"""Options of components as the engine passes them on."""

from __future__ import annotations

from typing import Any

from dlas.archs import LORA_KEY, SWITCHED_KEY
from dlas.config.build import to_plain
from dlas.config.schema import Component, NetworkConfig


def with_scale(section: Component, scale: int) -> dict[str, Any]:
    """A component's options, with the file's `scale` for one that takes a scale and is not told."""
    takes_scale = section.REGISTRY.find(section.component).parameter("scale") is not None
    return {"scale": scale, **section.options} if takes_scale else dict(section.options)


def building_options(section: NetworkConfig, scale: int) -> dict[str, Any]:
    """What `create_network` takes, but for the architecture's name; `with_scale` of a network."""
    changes = {SWITCHED_KEY: section.switched, LORA_KEY: section.lora}
    return with_scale(section, scale) | {key: to_plain(value) for key, value in changes.items() if value is not None}
