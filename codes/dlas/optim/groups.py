"""Which parameters an optimiser updates, and which of them together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from dlas.errors import ConfigurationError

NORM_OR_EMBEDDING = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm of every rank
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
)


class _Member(NamedTuple):
    name: str  # "network.path.to.parameter"
    parameter: nn.Parameter
    is_norm_or_bias: bool


def parameter_groups(
    networks: Mapping[str, nn.Module], param_groups: Mapping[str, Mapping[str, Any]] | None, exclude_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Cuts the trainable parameters of networks into groups; each parameter is in exactly one.

    Args:
        networks: by name.
        param_groups: by name of the group, ``{match: <regular expression>, lr: ..., ...}``. The expression is searched for in
            ``network.path.to.parameter``; without `match` the group takes the parameters whose attribute `PARAM_GROUP` is its
            name. Earlier groups take first; what none takes is in the groups ``weights`` and ``norm_bias``. All entries but
            `match` are options of the optimiser that hold in this group.
        exclude_norm_and_bias: biases and the parameters of normalisation and embedding layers get a group of their own,
            ``norm_bias`` or ``<group>.norm_bias``, without weight decay. False keeps each group in one piece.

    Returns:
        Groups for a `torch.optim.Optimizer`, with the further entries `name` and `norm_or_bias`.

    Raises:
        ConfigurationError: nothing is trainable, or a group takes no parameter.
    """
    members = list(_trainable(networks))
    if not members:
        raise ConfigurationError(f"networks {', '.join(networks)} have no trainable parameter, so there is nothing to optimise")
    groups: list[dict[str, Any]] = []
    for name, entry in (param_groups or {}).items():
        if not isinstance(entry, Mapping):
            raise ConfigurationError(
                f"param_groups: '{name}' must be a mapping such as {{match: ..., lr: ...}}, found {entry!r}"
            )
        options = {key: value for key, value in entry.items() if key != "match"}
        taken = _matching(name, entry.get("match"), members)
        taken_names = {member.name for member in taken}
        members = [member for member in members if member.name not in taken_names]
        groups += _split(name, f"{name}.norm_bias", taken, options, exclude_norm_and_bias)
    return groups + _split("weights", "norm_bias", members, {}, exclude_norm_and_bias)


def _trainable(networks: Mapping[str, nn.Module]) -> Iterator[_Member]:
    seen = set()
    for network_name, network in networks.items():
        for path, module in network.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad or parameter in seen:
                    continue
                seen.add(parameter)
                full_name = ".".join(filter(None, [network_name, path, name]))
                yield _Member(full_name, parameter, name == "bias" or isinstance(module, NORM_OR_EMBEDDING))


def _matching(name: str, pattern: str | None, members: list[_Member]) -> list[_Member]:
    if pattern is None:
        taken = [member for member in members if getattr(member.parameter, "PARAM_GROUP", None) == name]
        wanted = f"has the attribute PARAM_GROUP = '{name}', and 'match', a regular expression, is not given"
    else:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(f"param_groups: '{name}': match '{pattern}' is no regular expression: {error}") from error
        taken = [member for member in members if expression.search(member.name)]
        wanted = f"matches '{pattern}'"
    if not taken:
        some = ", ".join(member.name for member in members[:5]) + (", ..." if len(members) > 5 else "")
        raise ConfigurationError(
            f"param_groups: the group '{name}' would be empty: of the {len(members)} trainable parameters that earlier groups "
            f"have left ({some or 'none'}) none {wanted}"
        )
    return taken


def _split(
    name: str, name_without_decay: str, members: list[_Member], options: dict[str, Any], exclude_norm_and_bias: bool
) -> list[dict[str, Any]]:
    excluded = [member for member in members if exclude_norm_and_bias and member.is_norm_or_bias]
    weights = [member for member in members if not (exclude_norm_and_bias and member.is_norm_or_bias)]
    groups = [
        {"params": [m.parameter for m in weights], **options, "name": name, "norm_or_bias": False},
        {
            "params": [m.parameter for m in excluded],
            **options,
            "weight_decay": 0.0,
            "name": name_without_decay,
            "norm_or_bias": True,
        },
    ]
    return [group for group in groups if group["params"]]
