"""What a run's networks begin from: `path.pretrain`, but for what is to stay fresh, and factors of low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dlas.config import Config
from dlas.engine.fitting import load_weights
from dlas.errors import CheckpointError, ConfigurationError
from dlas.interop.mismatch import some
from dlas.interop.state_dicts import read_state_dict, translated
from dlas.layers.names import expression
from dlas.observe.console import LOGGER


def load_pretrained(config: Config, name: str, network: nn.Module) -> None:
    """Loads the weights that the file names for a network; does nothing where it names none.

    Raises:
        ConfigurationError: `fresh` names no weight of the network.
        CheckpointError: a file does not fit.
    """
    if name in config.path.pretrain:
        file = config.path.pretrain[name]
        weights = _without_fresh(config, name, network, read_state_dict(file))
        skipped = load_weights(config, name, network, weights, source=file, strict=config.path.strict_load)
        if skipped:
            LOGGER.warning(
                "%s: %d entries of %s do not fit and were left out: %s", name, len(skipped), file, ", ".join(skipped[:5])
            )
    lora = config.networks[name].lora
    if lora is not None and lora.start is not None:
        _load_adapters(config, name, network, lora.start)


def _without_fresh(config: Config, name: str, network: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`weights` with the network's own values where these are to stay."""
    section = config.networks[name]
    if not section.fresh:
        return weights
    own = network.state_dict()
    given = translated(network, own, weights)[0]
    fresh: dict[str, Tensor] = {}
    for pattern in section.fresh:
        matched = {key: value for key, value in own.items() if expression(pattern).fullmatch(key)}
        if not matched:
            raise ConfigurationError(
                f"{section.mark}: networks.{name}.fresh: '{pattern}' names no weight of the network; they are called "
                f"{some(list(own))}"
            )
        fresh |= matched
    LOGGER.info("%s: %d entries of its weights begin fresh: %s", name, len(fresh), some(list(fresh)))
    return {**given, **fresh}


def _load_adapters(config: Config, name: str, network: nn.Module, file: str) -> None:
    """Factors, and what else was trained beside them, over the network's own values."""
    factors = read_state_dict(file)
    own = network.state_dict()
    unknown = [key for key in factors if key not in own]
    if unknown:
        raise CheckpointError(
            f"{file} does not hold adapters of network '{name}': it has no {some(unknown)}. Are 'lora.targets' and 'trained' "
            "those that they were trained with?"
        )
    load_weights(config, name, network, {**own, **factors}, source=file)
