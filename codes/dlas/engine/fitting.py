"""Weights into a run's networks; where they do not fit, the options with which they would."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dlas.archs import create_network
from dlas.config import Config
from dlas.engine.options import building_options
from dlas.errors import CheckpointError
from dlas.interop.mismatch import numbered
from dlas.interop.state_dicts import fits, load_into, translated
from dlas.registry import ARCHS

_SMALL_NUMBERS = (1, 2, 3, 4, 8)
_MOST_CANDIDATES = 5
_INITIALISATION = frozenset(
    [
        *("normal_", "uniform_", "mul_", "fill_", "zero_", "trunc_normal_", "orthogonal_"),
        *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_", "constant_"),
    ]
)


def load_weights(
    config: Config, name: str, network: nn.Module, weights: Mapping[str, Tensor], *, source: str, strict: bool = True
) -> list[str]:
    """As `load_into`, for the network `name` of the run; a refusal says which options would fit, if one or two differ.

    Raises:
        CheckpointError: as `load_into`.
    """
    try:
        return load_into(network, weights, source=source, strict=strict)
    except CheckpointError as error:
        section = config.networks[name]
        given = building_options(section, config.scale)
        changed = fitting_options(section.which_model, given, network, weights)
        if changed is None:
            raise
        asked = {**_defaults(section.which_model), **given}
        hint = " and ".join(f"{key} {value} (the file says {asked[key]})" for key, value in changed.items())
        raise CheckpointError(f"{error}\n  It looks like {hint}") from error


def fitting_options(
    which_model: str, options: Mapping[str, Any], network: nn.Module, weights: Mapping[str, Tensor], seconds: float = 5.0
) -> dict[str, Any] | None:
    """The one or two numbers or switches among a network's options with which `weights` would fit, or None.

    Networks are built without memory, one after the other, until `seconds` of processor time are spent.
    """
    asked = {**_defaults(which_model), **options}
    own = network.state_dict()
    given = translated(network, own, weights)[0]
    if not own.keys() & given.keys():
        return None
    choices = {key: _choices(value, own, given) for key, value in asked.items() if type(value) in (int, bool)}
    other_names = own.keys() != given.keys()
    widths = {key for key in choices if other_names and asked[key] in _sizes(own)}  # no width changes a name
    deadline = time.process_time() + seconds
    alone = [(key,) for key in choices if key not in widths or key == "scale"]
    tries: list[tuple[str, ...]] = [*alone, *itertools.combinations(choices, 2)]
    for keys in sorted(tries, key=lambda keys: (len(keys), keys != ("scale",), math.prod(len(choices[key]) for key in keys))):
        for values in itertools.product(*(choices[key] for key in keys)):
            if time.process_time() > deadline:
                return None
            changed = dict(zip(keys, values, strict=True))
            if _would_fit(which_model, {**options, **changed}, weights):
                return changed
    return None


def _defaults(which_model: str) -> dict[str, Any]:
    return {p.name: p.default for p in ARCHS.find(which_model).parameters if not p.required}


def _choices(value: int | bool, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[int | bool]:
    """Other values that an option may have had, by what its present one looks like: a switch, a count of blocks, a width."""
    if isinstance(value, bool):
        return [not value]
    found: list[int] = []
    own_counts, counts = numbered(own), numbered(weights)
    found += [counts[group] for group in own_counts if own_counts[group] == value and group in counts]
    if value <= max(_SMALL_NUMBERS):
        found += _SMALL_NUMBERS
    if value in _sizes(own):
        found += [size for size, _ in _sizes(weights).most_common(_MOST_CANDIDATES)]
    return [size for size in dict.fromkeys(found) if size != value]


def _sizes(weights: Mapping[str, Tensor]) -> Counter[int]:
    return Counter(size for tensor in weights.values() for size in tensor.shape[:2])


def _would_fit(which_model: str, options: dict[str, Any], weights: Mapping[str, Tensor]) -> bool:
    try:
        with torch.device("meta"), _NoValues(), torch.random.fork_rng(devices=[]):
            network = create_network({"which_model": which_model, **options})
    except Exception:  # the combination is not allowed, or the network needs real numbers to be built
        return False
    return fits(network, weights)


class _NoValues(TorchFunctionMode):
    """Initialisation is passed over: without memory it has no effect, and takes nearly all of the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _INITIALISATION:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)
