"""Why weights do not fit a network, as far as names and shapes tell."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from dlas.layers.low_rank import is_of_adapter

NAMED_IN_MESSAGES = 4
"""Entries listed of each kind of mismatch."""

_OF_AN_OPTIMIZER = re.compile(r"(^|[./_])(optimi[sz]er|exp_avg|exp_avg_sq|momentum_buffer)([./_]|$)")


def likely_reason(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What most likely differs between a network (`own`) and the weights that were `given`, in words."""
    common = [name for name in own if name in given]
    if common and any(is_of_adapter(name) for name in given.keys() - own.keys()):
        return "it has adapters, and the network none; `dlas convert lora` merges them"
    if not common and any(_OF_AN_OPTIMIZER.search(name) for name in given):
        return "it holds the state of an optimiser, not weights; name the file of the network's weights"
    if not common:
        return "they have no name in common, so it belongs to another architecture"
    own_counts, given_counts = numbered(own), numbered(given)
    for group in sorted(own_counts.keys() & given_counts.keys()):
        if own_counts[group] != given_counts[group]:
            return (
                f"it has {given_counts[group]} of {group}.<i> and the network {own_counts[group]}, "
                "so the number of blocks (an option such as nb) differs"
            )
    if len(common) < max(len(own), len(given)):
        return "some layers are only in one of them, so an option that adds layers (such as scale) differs, or the architecture"
    differing = [name for name in common if own[name].shape != given[name].shape]
    if not differing:
        return "names and shapes agree, but it holds whole numbers instead of weights (a quantised network?)"
    if len(differing) == 1 and _differ_in_inputs_only(own[differing[0]], given[differing[0]]):
        layer = differing[0].rpartition(".")[0]
        return f"only the inputs of {layer} differ, so the input's channels or size (or the scale) differ"
    return "the layers are the same but for their sizes, so a width (an option such as nf or gc) differs"


def _differ_in_inputs_only(one: Tensor, other: Tensor) -> bool:
    return one.ndim == other.ndim >= 2 and one.shape[0] == other.shape[0] and one.shape[2:] == other.shape[2:]


def numbered(names: Collection[str]) -> dict[str, int]:
    """`body.0.x, body.1.x` -> `{"body": 2}`: how many numbered children each group has."""
    children: dict[str, set[str]] = {}
    for name in names:
        if found := re.match(r"(.+?)\.(\d+)\.", name):
            children.setdefault(found[1], set()).add(found[2])
    return {group: len(numbers) for group, numbers in children.items()}


def listing(what: str, items: Sequence[str]) -> list[str]:
    """A line that counts and names entries, or no line if there are none."""
    return [f"{what} ({len(items)}): {some(items)}"] if items else []


def some(items: Sequence[str]) -> str:
    """The first few of a list."""
    return ", ".join(items[:NAMED_IN_MESSAGES]) + (", ..." if len(items) > NAMED_IN_MESSAGES else "")


def shapes(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Both shapes of an entry."""
    return f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
