"""From sections of the configuration to live objects."""

from __future__ import annotations

import torch
from torch import nn

from dlas.archs import create_network
from dlas.config import Config
from dlas.config.schema import NetworkConfig
from dlas.data.base import Dataset, create_dataset
from dlas.engine.device import memory_format
from dlas.engine.options import building_options, with_scale
from dlas.engine.out_of_memory import explained
from dlas.engine.placement import device_of, place
from dlas.engine.pretrained import load_pretrained
from dlas.errors import ConfigurationError
from dlas.observe.console import LOGGER

_TOO_LARGE = "Take a smaller network, free memory that other processes hold, or use a device with more"


def build_networks(config: Config, device: torch.device, together: bool = False) -> dict[str, nn.Module]:
    """The run's networks, with pretrained weights, in training mode unless frozen.

    Args:
        config: of the run.
        device: where they are, but for those whose section names another one.
        together: also those.

    Raises:
        ConfigurationError: an option's value is refused by the architecture, `path.pretrain` names no network, or a network
            cannot be where it should.
        CheckpointError: a weights file does not fit.
    """
    for name in config.path.pretrain:
        if name not in config.networks:
            raise ConfigurationError(
                f"path.pretrain.{name}: no network is called '{name}'; there are: {', '.join(config.networks)}"
            )
    networks = {}
    for name, section in config.networks.items():
        own = device if together else device_of(config, name, device)
        options = {"which_model": section.which_model, **building_options(section, config.scale)}
        try:
            with explained(f"building network '{name}' ({section.which_model})", _TOO_LARGE):
                network = create_network(options, name=name)
        except ConfigurationError as error:
            raise ConfigurationError(f"{section.mark}: {error}") from error
        load_pretrained(config, name, network)
        if config.checkpointing_enabled and hasattr(network, "checkpointing"):
            _check_recomputation(name, section)
            network.checkpointing = True  # type: ignore[assignment]  # nn.Module's attributes are typed as tensors
        if not section.trainable:
            network.requires_grad_(False)
        network.train(section.trainable)
        layout = memory_format(config.memory_format)
        size = sum(each.nbytes for each in (*network.parameters(), *network.buffers())) / 1e6
        with explained(f"moving network '{name}' ({size:.0f} MB) to {own}", _TOO_LARGE):
            networks[name] = network.to(own, memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stubs
        if own != device:
            place(networks[name], own, device)
    if config.checkpointing_enabled and not any(hasattr(network, "checkpointing") for network in networks.values()):
        LOGGER.warning("checkpointing_enabled: none of the networks offers gradient checkpointing, so nothing is saved")
    return networks


def _check_recomputation(name: str, section: NetworkConfig) -> None:
    switched = section.switched
    if switched is not None and (switched.dropout or switched.router == "noisy" or switched.selector == "shared"):
        raise ConfigurationError(
            f"{section.mark}: networks.{name}.switched draws random numbers (dropout, or a noisy router) or shares a "
            "selector, which activations that checkpointing_enabled computes again do not have: write 'dropout: 0', "
            "'router: largest' and another selector, or 'checkpointing_enabled: false'"
        )
    if section.lora is not None and section.lora.dropout:
        raise ConfigurationError(
            f"{section.mark}: networks.{name}.lora.dropout draws random numbers, which activations that "
            "checkpointing_enabled computes again do not have: write 'dropout: 0' or 'checkpointing_enabled: false'"
        )


def build_dataset(config: Config, key: str) -> Dataset:
    """The data set of one entry of `datasets`."""
    return _dataset(config, key, "train" if key == "train" else "val")


def build_evaluation_dataset(config: Config, key: str) -> Dataset:
    """The same as it is evaluated, whatever its name."""
    return _dataset(config, key, "val")


def _dataset(config: Config, key: str, phase: str) -> Dataset:
    section = config.datasets[key]
    options = {"mode": section.mode, **with_scale(section, config.scale)}
    return create_dataset(options, phase=phase, name=key)
