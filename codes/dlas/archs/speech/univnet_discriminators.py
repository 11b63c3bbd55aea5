"""What judges the sound of a vocoder while it is trained: UnivNet's two kinds of discriminator, apart or together.

Spectrograms at several resolutions: Jang et al., "UnivNet", Interspeech 2021 (arXiv:2106.07889), section 2.3 and figure 2.
Samples that are a period apart: Kong et al., "HiFi-GAN", NeurIPS 2020 (arXiv:2010.05646), section 2.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.stft import check_resolutions, stft_magnitude
from dlas.layers.weight_norm import WeightNormConv2d
from dlas.registry import ARCHS
from dlas.types import PositiveInt


class _Judge(nn.Module):
    """Convolutions with leaky ReLUs, and a last one to a map of scores."""

    def __init__(self, convs: Sequence[nn.Module], conv_post: nn.Module, slope: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.conv_post = conv_post
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> scores (B, 1, h, w)."""
        for conv in self.convs:
            x = F.leaky_relu(conv(x), self.slope)
        return self.conv_post(x)


class SpectrogramJudge(_Judge):
    """Judges the spectrogram at one resolution.

    Args:
        resolution: n_fft, hop and window, in samples.
        channels: width.
        magnitude: what is looked at: magnitudes, or their logarithms.
    """

    def __init__(self, resolution: Sequence[int], channels: int, magnitude: str) -> None:
        wide = {"kernel_size": (3, 9), "padding": (1, 4)}
        convs = [WeightNormConv2d(1, channels, **wide)]
        convs += [WeightNormConv2d(channels, channels, stride=(1, 2), **wide) for _ in range(3)]
        convs.append(WeightNormConv2d(channels, channels, 3, padding=1))
        super().__init__(convs, WeightNormConv2d(channels, 1, 3, padding=1), slope=0.2)
        self.resolution = tuple(resolution)
        self.logarithmic = magnitude == "log"

    def forward(self, x: Tensor) -> Tensor:
        """Waveforms (B, 1, N) -> scores (B, 1, n_fft // 2 + 1, about N / hop / 8)."""
        spectrum = stft_magnitude(x, self.resolution)
        return super().forward((spectrum.log() if self.logarithmic else spectrum)[:, None])


class PeriodJudge(_Judge):
    """Judges samples that are one period apart.

    Args:
        period: in samples.
        channels: of the convolutions; all but the last divide the length by three.
    """

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        widths = [1, *channels]
        convs = [
            WeightNormConv2d(before, after, (5, 1), stride=(3 if place < len(channels) else 1, 1), padding=(2, 0))
            for place, (before, after) in enumerate(itertools.pairwise(widths), start=1)
        ]
        super().__init__(convs, WeightNormConv2d(widths[-1], 1, (3, 1), padding=(1, 0)), slope=0.1)
        self.period = period

    def forward(self, x: Tensor) -> Tensor:
        """Waveforms (B, 1, N) -> scores (B, 1, about N / period / 81, period)."""
        missing = -x.shape[-1] % self.period
        return super().forward(F.pad(x, (0, missing), mode="reflect").unflatten(-1, (-1, self.period)))


class _Judges(nn.Module):
    """Several judges of the same waveforms."""

    def __init__(self, judges: Sequence[nn.Module]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(judges)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Scores.

        Args:
            x: waveforms (B, 1, N), over half the samples of the longest transform.

        Returns:
            For each judge a map of scores, (B, 1, h, w); higher is more real. The losses `generator_gan` and
            `discriminator_gan` take the mean over them.
        """
        return [judge(x) for judge in self.discriminators]


@ARCHS.register("multi_resolution_discriminator")
class MultiResolutionDiscriminator(_Judges):
    """Judges of spectrograms at several resolutions (MRSD).

    Args:
        resolutions: each the length of the transform, the hop and the length of the Hann window, in samples.
        channels: width of each.
        magnitude: what they look at: `linear` magnitudes (the paper's) or their `log`.

    Raises:
        ValueError: a resolution is not possible.
    """

    def __init__(
        self,
        *,
        resolutions: Sequence[Sequence[int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
        channels: PositiveInt = 32,
        magnitude: Literal["linear", "log"] = "linear",
    ) -> None:
        check_resolutions(resolutions)
        super().__init__([SpectrogramJudge(each, channels, magnitude) for each in resolutions])

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"resolutions": [[32, 8, 16], [16, 4, 8]], "channels": 2}, _waveforms()


@ARCHS.register("multi_period_discriminator")
class MultiPeriodDiscriminator(_Judges):
    """Judges of samples at equal distances (MPD, in UnivNet MPWD).

    Args:
        periods: distances in samples, primes, so that they overlap little.
        channels: of the convolutions of each.
    """

    def __init__(
        self, *, periods: Sequence[PositiveInt] = (2, 3, 5, 7, 11), channels: Sequence[PositiveInt] = (32, 128, 512, 1024, 1024)
    ) -> None:
        super().__init__([PeriodJudge(period, channels) for period in periods])

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"periods": [2, 3], "channels": [2, 3]}, _waveforms()


@ARCHS.register("univnet_discriminator")
class UnivNetDiscriminator(nn.Module):
    """Both kinds, as UnivNet is trained with: three resolutions and five periods.

    Args:
        resolutions: see `multi_resolution_discriminator`.
        periods: see `multi_period_discriminator`.
        spectrogram_channels: width of the judges of spectrograms.
        period_channels: of the convolutions of the judges of periods.
        magnitude: see `multi_resolution_discriminator`.

    Raises:
        ValueError: a resolution is not possible.
    """

    def __init__(
        self,
        *,
        resolutions: Sequence[Sequence[int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)),
        periods: Sequence[PositiveInt] = (2, 3, 5, 7, 11),
        spectrogram_channels: PositiveInt = 32,
        period_channels: Sequence[PositiveInt] = (32, 128, 512, 1024, 1024),
        magnitude: Literal["linear", "log"] = "linear",
    ) -> None:
        super().__init__()
        self.MRD = MultiResolutionDiscriminator(resolutions=resolutions, channels=spectrogram_channels, magnitude=magnitude)
        self.MPD = MultiPeriodDiscriminator(periods=periods, channels=period_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Scores of all, spectrograms first: see `_Judges.forward`."""
        return self.MRD(x) + self.MPD(x)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        small = {"resolutions": [[32, 8, 16]], "periods": [2, 3], "spectrogram_channels": 2, "period_channels": [2, 3]}
        return small, _waveforms()


def _waveforms() -> tuple[Tensor]:
    return (torch.randn(2, 1, 101),)
