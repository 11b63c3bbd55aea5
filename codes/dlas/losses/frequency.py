"""Distances between the spectra of two pictures."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses.base import Loss, State
from dlas.losses.criteria import distance
from dlas.losses.pictures import check_choice, pictures
from dlas.registry import LOSSES
from dlas.types import NonNegativeFloat, PositiveInt, StateIn


@LOSSES.register("fft", "FFTLoss")
class FFTLoss(Loss):
    """Distance between real and imaginary parts of the two-dimensional Fourier transforms, mean over all of them. In float32.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        criterion: `l1` mean |d|; `l2` mean d^2; `charbonnier` mean sqrt(d^2 + 1e-6).
        norm: `backward`: the plain sum, whose values grow with the picture; `ortho`: divided by sqrt(H W).

    Source: Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021, eq. 7 (`l1`, `backward`).
    """

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        criterion: Literal["l1", "l2", "charbonnier"] = "l1",
        norm: Literal["backward", "ortho"] = "backward",
    ) -> None:
        super().__init__()
        check_choice("fft", "criterion", criterion, ("l1", "l2", "charbonnier"))
        check_choice("fft", "norm", norm, ("backward", "ortho"))
        self.real = real
        self.fake = fake
        self.criterion = criterion
        self.norm = norm

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("fft", state, self.real, self.fake)
        with torch.autocast(fake.device.type, enabled=False):
            # The transform is linear: that of the difference is the difference.
            parts = torch.view_as_real(torch.fft.fft2(fake - real, norm=self.norm))
            return distance(self.criterion, parts, torch.zeros_like(parts))


@LOSSES.register("focal_frequency", "FocalFrequencyLoss")
class FocalFrequencyLoss(Loss):
    """Squared distance of spectra, in which frequencies that are still far off weigh more. In float32.

    The weight of a frequency is its distance to the power alpha, divided by the largest one of the picture's channel; no
    gradient flows through it.

    Args:
        real: key of the true pictures, (B, C, H, W).
        fake: key of the generated pictures, same shape.
        alpha: exponent of the weights.
        patch_factor: cut each side into this many parts and transform them one by one.
        ave_spectrum: compare the means of the spectra over the micro-batch.
        log_matrix: take log(1 + w) of the weights before they are divided.
        batch_matrix: divide by the largest weight of the micro-batch instead of each channel's.

    Source: Jiang et al., "Focal Frequency Loss for Image Reconstruction and Synthesis", ICCV 2021, eq. 8.
    """

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        alpha: NonNegativeFloat = 1.0,
        patch_factor: PositiveInt = 1,
        ave_spectrum: bool = False,
        log_matrix: bool = False,
        batch_matrix: bool = False,
    ) -> None:
        super().__init__()
        self.real = real
        self.fake = fake
        self.alpha = alpha
        self.patch_factor = patch_factor
        self.ave_spectrum = ave_spectrum
        self.log_matrix = log_matrix
        self.batch_matrix = batch_matrix

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("focal_frequency", state, self.real, self.fake)
        difference = fake - real
        height, width = difference.shape[-2:]
        if height % self.patch_factor or width % self.patch_factor:
            raise ConfigurationError(
                f"focal_frequency: patch_factor {self.patch_factor} does not divide {height}x{width} pixels"
            )
        with torch.autocast(difference.device.type, enabled=False):
            patches = difference.unfold(2, height // self.patch_factor, height // self.patch_factor)
            patches = patches.unfold(3, width // self.patch_factor, width // self.patch_factor)
            parts = torch.view_as_real(torch.fft.fft2(patches, norm="ortho"))
            if self.ave_spectrum:
                parts = parts.mean(0, keepdim=True)
            squared = parts.square().sum(-1)
            return (self._weights(squared.detach()) * squared).mean()

    def _weights(self, squared: Tensor) -> Tensor:
        weights = squared.sqrt() ** self.alpha
        if self.log_matrix:
            weights = torch.log(weights + 1)
        largest = weights.amax() if self.batch_matrix else weights.amax((-2, -1), keepdim=True)
        return torch.where(largest > 0, weights / largest, 0.0)  # equal pictures have nothing to weigh
