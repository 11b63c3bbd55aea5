"""Losses that are small when all switches are used alike, and the router that two of them belong to."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.switched.gate import route_top1


def switch_balance(shares: Tensor, chosen: Tensor) -> Tensor:
    """The loss of the Switch Transformer: 1 where all switches are used alike, up to `breadth` where one takes all.

    Args:
        shares: (B, breadth, H, W), before the winner is chosen: gradients pass here.
        chosen: `route_top1` of them.

    Source: Fedus et al. 2021 (arXiv:2101.03961), equation 4.
    """
    often, much = (each.float().mean(dim=(0, 2, 3)) for each in (chosen, shares))
    return shares.shape[1] * (often * much).sum()


class Routed(NamedTuple):
    """What a router made of logits.

    Attributes:
        chosen: 1 for the switch of each place, 0 for the others, (B, breadth, H, W).
        load: how surely each switch would be chosen again under other noise, of the same shape.
    """

    chosen: Tensor
    load: Tensor


class NoisyRouter(nn.Module):
    """Chooses by noisy logits; how noisy is learned.

    Args:
        breadth: number of switches.
        load: paper: the probability that a switch is above the best of the others. published: erf of its logit's lead, in
            units of the noise, over its own noisy logit, which is how the published implementation computes it.

    Raises:
        ValueError: there is no such `load`, or fewer than two switches.

    Source: Shazeer et al. 2017 (arXiv:1701.06538), equations 3 to 5 and 8 to 10; the winner's gradient is that of `route_top1`.
    """

    def __init__(self, breadth: int, load: Literal["paper", "published"] = "paper") -> None:
        super().__init__()
        if load not in ("paper", "published"):
            raise ValueError(f"load of a router is 'paper' or 'published', got {load!r}")
        if breadth < 2:
            raise ValueError(f"a router chooses among two switches at least, got {breadth}")
        self.load = load
        self.wg = nn.Parameter(torch.zeros(1, breadth, 1, 1))
        self.wnoise = nn.Parameter(torch.zeros(1, breadth, 1, 1))

    def forward(self, logits: Tensor) -> Routed:
        """(B, breadth, H, W)."""
        clean, spread = logits * self.wg, F.softplus(logits * self.wnoise)
        noisy = clean + torch.randn_like(logits) * spread
        if self.load == "published":
            load = torch.erf((clean - noisy) / spread)
        else:
            best, second = noisy.topk(2, dim=1).values.split(1, dim=1)
            rival = torch.where(noisy == best, second, best)
            load = 0.5 * (1 + torch.erf((clean - rival) / spread / math.sqrt(2)))
        return Routed(route_top1(torch.softmax(noisy, dim=1)), load)


def balance_loss(routed: Routed, load_weight: float, importance_weight: float) -> Tensor:
    """Squared variances over all places and switches, of the load and of what was chosen, weighted and summed."""
    importance = routed.chosen.float().var().square()
    return importance_weight * importance + load_weight * routed.load.float().var().square()
