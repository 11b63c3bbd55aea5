"""Group normalisation of diffusion networks, and how many groups they have."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GroupRule: TypeAlias = Literal["guided", "dlas"]
"""guided: 32 groups. dlas: 8 for up to 16 channels, 16 for up to 64, else 32, halved until they divide the channels."""


def groups_for(channels: int, rule: GroupRule) -> int:
    """How many groups so many channels are normalised in.

    Raises:
        ValueError: they cannot be divided so, or the rule is unknown.
    """
    if rule == "dlas":
        groups = 8 if channels <= 16 else 16 if channels <= 64 else 32
        while channels % groups:
            groups //= 2
        return groups
    if rule != "guided":
        raise ValueError(f"groups of normalisation are by the rule 'guided' or 'dlas', got {rule!r}")
    if channels % 32:
        raise ValueError(
            f"{channels} channels cannot be normalised in 32 groups; make model_channels and its multiples multiples of 32, "
            "or take the rule 'dlas', which has fewer groups for few channels"
        )
    return 32


class GroupNorm(nn.GroupNorm):
    """Group normalisation that says itself what it is computed in, under autocast too.

    Args:
        channels: of the input.
        rule: for the number of groups.
        low_precision: compute in the type of the input. Otherwise in float32 at least, as published networks were trained; the
            result has the input's type in both cases, and sums are in float32 within the operation.
        eps: added to the variance.
    """

    def __init__(self, channels: int, rule: GroupRule = "guided", low_precision: bool = False, eps: float = 1e-5) -> None:
        super().__init__(groups_for(channels, rule), channels, eps)
        self.low_precision = low_precision

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, ...) -> the same shape, type and memory layout."""
        dtype = x.dtype if self.low_precision else torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(dtype), self.bias.to(dtype)
            return F.group_norm(x.to(dtype), self.num_groups, weight, bias, self.eps).to(x.dtype)
