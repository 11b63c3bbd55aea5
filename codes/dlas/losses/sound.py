"""Distances between waveforms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dlas.context import Context
from dlas.layers.stft import check_resolutions, stft_distances
from dlas.losses.base import Loss, State
from dlas.registry import LOSSES
from dlas.types import NonNegativeFloat, StateIn


@LOSSES.register("multi_resolution_stft")
class MultiResolutionSTFTLoss(Loss):
    """Distance between magnitudes of short-time spectra, the mean over resolutions, in float32.

    Logs `spectral_convergence` and `log_magnitude`, unweighted.

    Args:
        real: key of the true waveforms, (B, 1, N) or (B, N).
        fake: key of the generated ones, same shape.
        resolutions: each the length of the transform, the hop and the length of the Hann window, in samples.
        convergence_weight: of |S - S'| / |S| (Frobenius norms; the mean over samples).
        magnitude_weight: of the mean |log S - log S'|.

    Source: Yamamoto et al., "Parallel WaveGAN", ICASSP 2020, eq. 4 to 6; resolutions: its table 1.
    """

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        resolutions: Sequence[Sequence[int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
        convergence_weight: NonNegativeFloat = 1.0,
        magnitude_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        check_resolutions(resolutions)
        self.real = real
        self.fake = fake
        self.resolutions = resolutions
        self.convergence_weight = convergence_weight
        self.magnitude_weight = magnitude_weight

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        real, fake = state[self.real], state[self.fake]
        if real.shape != fake.shape:
            raise ValueError(
                f"multi_resolution_stft: real '{self.real}' {tuple(real.shape)} and fake '{self.fake}' {tuple(fake.shape)} "
                "must have the same shape; check the hop length of the vocoder, and cut both to the same samples"
            )
        each_convergence, each_magnitude = stft_distances(fake, real, self.resolutions)
        convergence, magnitude = each_convergence.mean(), each_magnitude.mean()
        loss = self.convergence_weight * convergence + self.magnitude_weight * magnitude
        return loss, {"spectral_convergence": convergence.detach(), "log_magnitude": magnitude.detach()}
