"""Distances between two tensors of the same shape, by the names that losses take."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dlas.errors import ConfigurationError

CHARBONNIER_EPS = 1e-6
"""Of sqrt(d^2 + eps): the square of the published 1e-3 (Lai et al., "Deep Laplacian Pyramid Networks", CVPR 2017, eq. 3)."""


def distance(criterion: str, prediction: Tensor, target: Tensor, eps: float = CHARBONNIER_EPS) -> Tensor:
    """Mean of |d| (`l1`), d^2 (`l2`) or sqrt(d^2 + eps) (`charbonnier`), in float32.

    Raises:
        ConfigurationError: the criterion has another name.
    """
    prediction, target = prediction.float(), target.float()
    if criterion == "l1":
        return F.l1_loss(prediction, target)
    if criterion == "l2":
        return F.mse_loss(prediction, target)
    if criterion == "charbonnier":
        return ((prediction - target).square() + eps).sqrt().mean()
    raise ConfigurationError(f"no criterion is called '{criterion}'; known: l1, l2, charbonnier")
