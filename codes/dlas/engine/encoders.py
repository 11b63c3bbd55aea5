"""Whether encoded samples were made by the networks of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import nn

from dlas.data.base import Dataset
from dlas.errors import ConfigurationError


def fingerprint(network: nn.Module) -> str:
    """A network's weights and buffers in 16 hexadecimal digits: their names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(memoryview(flat.view(torch.uint8).numpy()))
    return found.hexdigest()[:16]


def check_encoders(datasets: Mapping[str, Dataset], networks: Mapping[str, nn.Module], trained: Collection[str] = ()) -> None:
    """Refuses samples that other weights made than those that the run has.

    Args:
        datasets: of the run, by name.
        networks: of the run, with their weights.
        trained: names of those that it trains.

    Raises:
        ConfigurationError: a network that made samples of a data set is in the run with other weights, or is trained.
    """
    for key, dataset in datasets.items():
        for name, made_with in dataset.made_with().items():
            if name not in networks:
                continue
            where = f"datasets.{key}: {dataset.source(0).partition(' of ')[2]} was encoded by the network '{name}'"
            if name in trained:
                raise ConfigurationError(
                    f"{where}, which this run trains: its results would be those of other weights. Write `trainable: false`, "
                    "or "
                    "run it in the step in place of reading its results"
                )
            own = fingerprint(networks[name])
            if own != made_with:
                raise ConfigurationError(
                    f"{where} with other weights ({made_with}) than it has here ({own}). Give `path.pretrain.{name}` the "
                    "weights that "
                    "made them, or encode again: `dlas data encode -opt FILE --overwrite`"
                )
