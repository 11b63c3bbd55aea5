"""Parts of networks that are not trained for part of the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from dlas.config import Config
from dlas.engine.gate import Gate
from dlas.errors import ConfigurationError


@dataclass(frozen=True, eq=False)
class Freeze:
    """Parameters without gradients while a gate is open: their optimiser passes them over, with its moments and decay."""

    gate: Gate
    parameters: list[nn.Parameter]


def freezes(config: Config, networks: Mapping[str, nn.Module]) -> list[Freeze]:
    """What `networks.<name>.freeze` says, and what networks say themselves by `frozen_at_first`.

    Raises:
        ConfigurationError: an expression is none, or that of no parameter.
    """
    found = []
    for name, network in networks.items():
        parameters = dict(network.named_parameters())
        for key, section in config.networks[name].freeze.items():
            place = f"{section.mark}: networks.{name}.freeze.{key}"
            try:
                matched = [each for path, each in parameters.items() if re.search(section.match, path)]
            except re.error as error:
                raise ConfigurationError(f"{place}: '{section.match}' is no regular expression: {error}") from error
            if not matched:
                raise ConfigurationError(
                    f"{place}: no parameter's name matches '{section.match}'; they are "
                    f"called {', '.join(list(parameters)[:3])}, ..."
                )
            found.append(Freeze(Gate(section.after, section.before), matched))
        for prefix, share in getattr(network, "frozen_at_first", {}).items():
            matched = [each for path, each in parameters.items() if path.startswith(prefix)]
            if config.train is not None:
                found.append(Freeze(Gate(before=round(share * config.train.niter)), matched))
    return found
