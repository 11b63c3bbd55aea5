"""Networks compiled by torch.compile, each by itself and in place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from dlas.errors import ConfigurationError


def compile_networks(networks: Mapping[str, nn.Module], whole: bool) -> None:
    """Has calls of the networks compiled when they are first made; names of weights stay what they are.

    Methods other than the forward pass stay as they are, and so do copies of a network.

    Args:
        networks: by name.
        whole: they are not spread over processes.

    Raises:
        ConfigurationError: they are.
    """
    if not whole:
        raise ConfigurationError("compile: true is not possible with 'strategy: fsdp' or 'deepspeed'; leave one of them out")
    for network in networks.values():
        network.compile()
