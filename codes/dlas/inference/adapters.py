"""Networks that were fine-tuned by low-rank adapters, as files: merged, or the adapters alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlas.archs import LORA_KEY, create_network
from dlas.errors import CheckpointError, ConfigurationError
from dlas.inference.model import OPTIONS_KEY, Found, network_options
from dlas.inference.release import save_weights
from dlas.interop.state_dicts import load_into
from dlas.layers.low_rank import is_of_adapter, merge_adapters


def write_merged(found: Found, path: Path) -> list[str]:
    """Writes a network with what its adapters add added to its weights: a plain network with the names of the base.

    Args:
        found: a network whose options have `lora`.
        path: of the safetensors file.

    Returns:
        Names of the layers that had an adapter.

    Raises:
        ConfigurationError: the network has no adapters by its options.
        CheckpointError: its weights do not fit.
    """
    options = _options(found)
    network = found.build()
    layers = merge_adapters(network)
    del options[LORA_KEY]
    save_weights(path, network.state_dict(), {OPTIONS_KEY: json.dumps(options)})
    return layers


def write_adapters(found: Found, path: Path) -> int:
    """Writes the adapters, and the parameters that were trained beside them, without the base.

    Returns:
        How many numbers the file has.

    Raises:
        ConfigurationError: as of `write_merged`.
    """
    options = _options(found)
    network = create_network(options)
    load_into(network, found.weights, source=found.source)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    tensors = {name: value for name, value in network.state_dict().items() if name in trained}
    save_weights(path, tensors, {OPTIONS_KEY: json.dumps(options)})
    return sum(tensor.numel() for tensor in tensors.values())


def with_base(adapters: Found, base: Found) -> Found:
    """The network of a file of adapters: what it lacks is the base's.

    Raises:
        CheckpointError: the base has adapters itself.
    """
    if any(is_of_adapter(name) for name in base.weights):
        raise CheckpointError(f"{base.source}: has adapters itself; give the network that they were trained on")
    return replace(adapters, weights={**base.weights, **adapters.weights}, source=f"{base.source} with {adapters.source}")


def _options(found: Found) -> dict[str, Any]:
    options = network_options(found.options)
    if not options.get(LORA_KEY):
        raise ConfigurationError(f"{found.source}: its options name no 'lora', so it has no adapters")
    return options
