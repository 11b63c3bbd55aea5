"""Mean over samples that arrive in pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.ranks import add_up


class Average:
    """Sum and count in float64, so that neither the order nor the pieces matter.

    Equal images have an infinite PSNR. One of them makes the mean infinite, which is the truth and tells nothing of the others;
    so infinite values are counted apart, and both the mean of all and the mean of the finite values can be had.

    Args:
        device: where the totals live. With the device of the values, nothing waits for it.

    Attributes:
        totals: float64, (3,): sum of the finite values, number of finite values, number of values that are +infinity.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)

    def update(self, values: Tensor) -> None:
        """Adds samples.

        Args:
            values: one number a sample, any shape and float dtype. NaN and -infinity spoil the mean, as they should.
        """
        values = values.detach().double()
        infinite = values == torch.inf
        total = torch.where(infinite, 0.0, values).sum()
        self.totals += torch.stack([total, (~infinite).sum(), infinite.sum()]).to(self.totals.device)

    def merge(self, other: Average) -> None:
        """Adds everything that `other` has seen."""
        self.totals += other.totals.to(self.totals.device)

    def synchronize(self) -> None:
        """Adds what the other processes have seen."""
        add_up(self.totals)

    def compute(self) -> Tensor:
        """Mean of all samples, float64, no dimensions: infinite if one of them is, NaN if there were none."""
        total, finite, infinite = self.totals
        return torch.where(infinite > 0, torch.inf, total / finite)

    def compute_finite(self) -> Tensor:
        """Mean of the finite samples, float64, no dimensions: NaN if there were none."""
        return self.totals[0] / self.totals[1]
