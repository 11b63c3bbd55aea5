"""Losses that are small when all switches are used alike."""

from __future__ import annotations

from torch import Tensor

from dlas.layers.switched.gate import Routed


def switch_balance(shares: Tensor, chosen: Tensor) -> Tensor:
    """The loss of the Switch Transformer: 1 where all switches are used alike, up to `breadth` where one takes all.

    Args:
        shares: (B, breadth, H, W), before the winner is chosen: gradients pass here.
        chosen: `route_top1` of them.

    Source: Fedus et al. 2021 (arXiv:2101.03961), equation 4.
    """
    often, much = (each.float().mean(dim=(0, 2, 3)) for each in (chosen, shares))
    return shares.shape[1] * (often * much).sum()


def balance_loss(routed: Routed, load_weight: float, importance_weight: float) -> Tensor:
    """Squared variances over all places and switches, of the load and of what was chosen, weighted and summed.

    Raises:
        ValueError: there is no load: the router is not a noisy one.

    Source: Shazeer et al. 2017 (arXiv:1701.06538), section 4 and appendix A, as published for switched convolutions, where
    places are not summed over before the variance is taken.
    """
    if routed.load is None:
        raise ValueError("these switches have no load; only a noisy router tells one")
    importance = routed.chosen.float().var().square()
    return importance_weight * importance + load_weight * routed.load.float().var().square()
