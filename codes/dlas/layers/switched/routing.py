"""The winner among switches."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RouterForm: TypeAlias = Literal["largest", "noisy"]
"""largest: the largest share wins. noisy: that of noisy logits (`NoisyRouter`)."""


class _RouteTop1(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shares: Tensor) -> Tensor:
        share, winner = shares.max(dim=1, keepdim=True)  # on the CPU many times faster than argmax
        ctx.save_for_backward(winner, share)
        return torch.zeros_like(shares).scatter_(1, winner, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        winner, share = ctx.saved_tensors
        return torch.zeros_like(grad).scatter_(1, winner, grad.gather(1, winner) / share)


def route_top1(shares: Tensor) -> Tensor:
    """1 for the largest share of each place, 0 for the others: (B, breadth, H, W) -> the same shape.

    The gradient reaches the winner alone, divided by its share: that of ``shares / shares.detach()`` at the winner.
    """
    return _RouteTop1.apply(shares)


class Routed(NamedTuple):
    """What a gate made of logits.

    Attributes:
        chosen: how much each switch takes part at each place, (B, breadth, H, W): 1 for one of them and 0 for the others where
            the gate is hard.
        shares: the same before the winner is chosen; gradients of balance losses pass here.
        load: of a noisy router, how surely each switch would be chosen again under other noise.
    """

    chosen: Tensor
    shares: Tensor
    load: Tensor | None = None


class NoisyRouter(nn.Module):
    """Chooses by noisy logits; how noisy is learned. In evaluation there is no noise.

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
        noisy = clean + torch.randn_like(logits) * spread if self.training else clean
        if self.load == "published":
            load = torch.erf((clean - noisy) / spread)
        else:
            best, second = noisy.topk(2, dim=1).values.split(1, dim=1)
            rival = torch.where(noisy == best, second, best)
            load = 0.5 * (1 + torch.erf((clean - rival) / spread / math.sqrt(2)))
        shares = torch.softmax(noisy, dim=1)
        return Routed(route_top1(shares), shares, load)
