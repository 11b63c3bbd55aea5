"""Trained networks with switched convolutions in the place of plain ones, and back, as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dlas.archs import SWITCHED_KEY, create_network
from dlas.config.build import to_plain
from dlas.config.schema import SwitchedConfig
from dlas.errors import CheckpointError, ConfigurationError
from dlas.inference.model import OPTIONS_KEY, Found, network_options
from dlas.inference.release import save_weights
from dlas.interop.state_dicts import load_into
from dlas.layers.switched import switched_layers, unswitch_convolutions


def switch(found: Found, layers: Sequence[str], breadth: int, path: Path) -> list[str]:
    """Writes a network with switched convolutions, whose other options are the defaults of `networks.<name>.switched`.

    The file says so, and `dlas` reads it like any released one.

    Args:
        found: the plain network.
        layers: which convolutions; as of `switch_convolutions`.
        breadth: kernels of each.
        path: of the safetensors file.

    Returns:
        Names of the layers.

    Raises:
        ConfigurationError: the network is switched already, or nothing has such a name.
    """
    if found.options.get(SWITCHED_KEY):
        raise ConfigurationError(
            f"{found.source}: has switched convolutions already; make them plain first: dlas convert unswitch"
        )
    switched = to_plain(SwitchedConfig(layers=list(layers), breadth=breadth))
    options = {**network_options(found.options), SWITCHED_KEY: switched}
    network = create_network(options)
    load_into(network, found.weights, source=found.source)
    save_weights(path, network.state_dict(), {OPTIONS_KEY: json.dumps(options)})
    return [name for name, _ in switched_layers(network)]


def unswitch(found: Found, kernel: str | None, path: Path) -> list[str]:
    """Writes a network with plain convolutions.

    Args:
        found: a network of whose options `switched` is one.
        kernel: which kernel of a layer stays, of those that differ; as of `unswitch_convolutions`.
        path: of the safetensors file.

    Returns:
        Names of the layers.

    Raises:
        ConfigurationError: the network is not switched by its options.
        CheckpointError: kernels differ, and it is not said which one stays; or that one cannot be told.
    """
    options = network_options(found.options)
    if not options.pop(SWITCHED_KEY, None):
        raise ConfigurationError(
            f"{found.source}: its options name no 'switched' convolutions, so it is not known what it was before; "
            f"it is a {options['which_model']}"
        )
    network = found.build()
    try:
        layers = unswitch_convolutions(network, kernel)
    except ValueError as error:
        raise CheckpointError(f"{found.source}: {error}") from error
    save_weights(path, network.state_dict(), {OPTIONS_KEY: json.dumps(options)})
    return layers
