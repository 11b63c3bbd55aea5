"""Locally discriminative learning: a loss where the picture has artifacts, not details."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.losses.pictures import pictures
from dlas.registry import LOSSES
from dlas.types import PositiveInt, StateIn


@LOSSES.register("ldl", "LDLLoss")
class LDLLoss(Loss):
    """Mean of w |fake - real|, where w is large at artifacts. In float32.

    With the residual r, the sum of |real - fake| over channels, w is var(r of the picture)^(1/5) times the variance of r in a
    window around each pixel, and 0 where the reference is further from the truth than `fake` is: what the averaged weights
    cannot do better is taken for detail.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        reference: key of steadier pictures, same shape: the output of the averaged weights (injector `generator_ema`) in the
            paper, or that of a network trained without adversary. Not given: w is nowhere set to 0.
        window: side of the window, odd.
        weights_learn: let gradients flow through w, as BasicSR's code does; the paper calls it a weight.

    Source: Liang et al., "Details or Artifacts: A Locally Discriminative Learning Approach to Realistic Image
    Super-Resolution", CVPR 2022, eq. 2 to 7.
    """

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        reference: StateIn | None = None,
        window: PositiveInt = 7,
        weights_learn: bool = False,
    ) -> None:
        super().__init__()
        if window % 2 == 0:
            raise ConfigurationError(f"ldl: window must be odd, not {window}")
        self.real = real
        self.fake = fake
        self.reference = reference
        self.window = window
        self.weights_learn = weights_learn

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("ldl", state, self.real, self.fake)
        if min(fake.shape[-2:]) <= self.window // 2:
            raise ValueError(
                f"ldl: pictures of {fake.shape[-2]}x{fake.shape[-1]} pixels are too small for window {self.window}"
            )
        reference = None if self.reference is None else pictures("ldl", state, self.real, self.reference)[1].detach()
        with torch.autocast(fake.device.type, enabled=False):
            weights = artifact_map(real, fake if self.weights_learn else fake.detach(), reference, self.window)
            return (weights * (fake - real).abs()).mean()


def artifact_map(real: Tensor, fake: Tensor, reference: Tensor | None, window: int = 7) -> Tensor:
    """The weights of `LDLLoss`, (B, 1, H, W), from pictures (B, C, H, W).

    Source: as of `LDLLoss`.
    """
    residual = (real - fake).abs().sum(1, keepdim=True)
    # The clamp keeps the slope of the fifth root finite where a residual is constant.
    spread = residual.var((1, 2, 3), keepdim=True).clamp_min(1e-20) ** 0.2
    padded = F.pad(residual, [window // 2] * 4, mode="reflect")
    local = padded.unfold(2, window, 1).unfold(3, window, 1).var((-2, -1))
    weights = spread * local
    if reference is None:
        return weights
    steadier = (real - reference).abs().sum(1, keepdim=True)
    return torch.where(residual < steadier, 0.0, weights)
