"""Losses over differences of neighbouring pixels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.context import Context
from dlas.host import constant
from dlas.losses.base import Loss, State
from dlas.losses.criteria import distance
from dlas.losses.pictures import check_choice, pictures
from dlas.registry import LOSSES
from dlas.types import StateIn

_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


@LOSSES.register("tv", "WeightedTVLoss")
class TotalVariationLoss(Loss):
    """Total variation: mean of |difference| between horizontal neighbours plus that between vertical ones. In float32.

    Args:
        fake: key of the generated pictures, (B, C, H, W).
        criterion: `l1` |d|, which keeps edges; `l2` d^2.

    Source: Rudin et al., "Nonlinear total variation based noise removal algorithms", 1992 (its anisotropic form).
    """

    def __init__(self, *, fake: StateIn, criterion: Literal["l1", "l2"] = "l1") -> None:
        super().__init__()
        check_choice("tv", "criterion", criterion, ("l1", "l2"))
        self.fake = fake
        self.criterion = criterion

    def forward(self, state: State, context: Context) -> Tensor:
        _, fake = pictures("tv", state, self.fake, self.fake)
        return distance(self.criterion, fake[..., 1:], fake[..., :-1]) + distance(
            self.criterion, fake[..., 1:, :], fake[..., :-1, :]
        )


@LOSSES.register("gradient", "sobel", "GradientLoss")
class GradientLoss(Loss):
    """Distance between the gradients of two pictures, by Sobel's filters over 8: a ramp of slope 1 has the gradient 1.

    The border is continued by its edge pixels. In float32.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).
        magnitude: compare lengths of gradients, sqrt(gx^2 + gy^2 + 1e-6), instead of both components.

    Source: by magnitude: Ma et al., "Structure-Preserving Super Resolution with Gradient Guidance", CVPR 2020, eq. 6.
    """

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        criterion: Literal["l1", "l2", "charbonnier"] = "l1",
        magnitude: bool = False,
    ) -> None:
        super().__init__()
        check_choice("gradient", "criterion", criterion, ("l1", "l2", "charbonnier"))
        self.real = real
        self.fake = fake
        self.criterion = criterion
        self.magnitude = magnitude

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("gradient", state, self.real, self.fake)
        with torch.autocast(fake.device.type, enabled=False):
            return distance(self.criterion, self._gradient(fake), self._gradient(real))

    def _gradient(self, image: Tensor) -> Tensor:
        planes = F.pad(image, [1, 1, 1, 1], mode="replicate").flatten(0, 1)[:, None]
        across = constant(_SOBEL, image.device) / 8
        gradient = F.conv2d(planes, torch.stack([across, across.T])[:, None])
        return (gradient.square().sum(1) + 1e-6).sqrt() if self.magnitude else gradient
