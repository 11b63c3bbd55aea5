"""Structural similarity as a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.layers.ssim import SCALE_WEIGHTS, WINDOW, multiscale_similarity, similarity
from dlas.losses.base import Loss, State
from dlas.losses.pictures import pictures
from dlas.registry import LOSSES
from dlas.types import PositiveFloat, PositiveInt, StateIn


@LOSSES.register("ssim", "SSIMLoss")
class SSIMLoss(Loss):
    """1 - SSIM: mean over samples and channels, 11x11 Gaussian window of sigma 1.5, where it lies inside. In float32.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        data_range: difference of the largest and smallest value of a picture; 2 for pictures in [-1, 1].

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13; as a loss:
    Zhao et al., "Loss Functions for Image Restoration with Neural Networks", 2017, eq. 7.
    """

    def __init__(self, *, real: StateIn, fake: StateIn, data_range: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.real = real
        self.fake = fake
        self.data_range = data_range

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("ssim", state, self.real, self.fake)
        if min(fake.shape[-2:]) < WINDOW:
            raise ValueError(f"ssim: the pictures of shape {tuple(fake.shape)} are smaller than the window of {WINDOW} pixels")
        with torch.autocast(fake.device.type, enabled=False):
            return 1 - similarity(fake, real, self.data_range)[0].mean()


@LOSSES.register("ms_ssim", "MSSSIMLoss")
class MultiScaleSSIMLoss(Loss):
    """1 - MS-SSIM, mean over samples and channels. In float32.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        scales: 1 to 5. Five, the published number, need 161 pixels, four 81, three 41. With fewer than five the first exponents
            are made to sum to 1.
        data_range: difference of the largest and smallest value of a picture; 2 for pictures in [-1, 1].

    Source: Wang et al., "Multiscale structural similarity for image quality assessment", 2003, eq. 7; as a loss: Zhao et al.,
    "Loss Functions for Image Restoration with Neural Networks", 2017, eq. 9.
    """

    def __init__(self, *, real: StateIn, fake: StateIn, scales: PositiveInt = 5, data_range: PositiveFloat = 1.0) -> None:
        super().__init__()
        if not 1 <= scales <= len(SCALE_WEIGHTS):
            raise ConfigurationError(f"ms_ssim: scales must be 1 to {len(SCALE_WEIGHTS)}, not {scales}")
        self.real = real
        self.fake = fake
        self.scales = scales
        self.data_range = data_range

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("ms_ssim", state, self.real, self.fake)
        with torch.autocast(fake.device.type, enabled=False):
            return 1 - multiscale_similarity(fake, real, self.data_range, self.scales).mean()
