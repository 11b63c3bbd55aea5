"""How far normally distributed latents are from the standard normal distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.context import Context
from dlas.diffusion.likelihood import normal_kl
from dlas.losses.base import Loss, State
from dlas.registry import LOSSES
from dlas.types import StateIn


@LOSSES.register("gaussian_kl")
class GaussianKLLoss(Loss):
    """KL divergence of each sample's latents from the standard normal distribution, in nats, summed over them. In float32.

    Args:
        mean: key of the means, (B, ...).
        log_variance: key of the logarithms of the variances, of the same shape.

    Source: Kingma and Welling 2014 (arXiv:1312.6114), appendix B; Rombach et al. 2022 (arXiv:2112.10752) give it the
    weight 1e-6.
    """

    def __init__(self, *, mean: StateIn, log_variance: StateIn) -> None:
        super().__init__()
        self.mean = mean
        self.log_variance = log_variance

    def forward(self, state: State, context: Context) -> Tensor:
        mean, log_variance = state[self.mean].float(), state[self.log_variance].float()
        if mean.shape != log_variance.shape:
            raise ValueError(
                f"gaussian_kl: mean '{self.mean}' {tuple(mean.shape)} and log_variance '{self.log_variance}' "
                f"{tuple(log_variance.shape)} must have the same shape"
            )
        zero = torch.zeros((), device=mean.device)
        return normal_kl(mean, log_variance, zero, zero).flatten(1).sum(dim=1).mean()
