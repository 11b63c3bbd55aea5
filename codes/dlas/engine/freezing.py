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
        ConfigurationError: an expression is that of no parameter.
    """
    found = []
    for name, network in networks.items():
        # What a checkpoint is loaded into may be renamed; these are the names in `dlas explain` and in param_groups.
        parameters = dict(network.named_parameters())
        for key, section in config.networks[name].freeze.items():
            matched = [each for path, each in parameters.items() if re.search(section.match, path)]
            if not matched:
                raise ConfigurationError(
                    f"{section.mark}: networks.{name}.freeze.{key}: no parameter's name matches '{section.match}'; they are "
                    f"called {', '.join(list(parameters)[:3])}, ..."
                )
            found.append(Freeze(Gate(section.after, section.before), matched))
        for prefix, share in getattr(network, "frozen_at_first", {}).items():
            matched = [each for path, each in parameters.items() if path.startswith(prefix)]
            if config.train is not None:
                found.append(Freeze(Gate(before=round(share * config.train.niter)), matched))
    return found
