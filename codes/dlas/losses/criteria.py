"""Distances between two tensors of the same shape, by the names that losses take."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dlas.errors import ConfigurationError


def distance(criterion: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of |d| (`l1`) or d^2 (`l2`), in float32.

    Raises:
        ConfigurationError: the criterion has another name.
    """
    if criterion == "l1":
        return F.l1_loss(prediction.float(), target.float())
    if criterion == "l2":
        return F.mse_loss(prediction.float(), target.float())
    raise ConfigurationError(f"no criterion is called '{criterion}'; known: l1, l2")
