"""How far generated waveforms are from recorded ones: spectra, mel cepstra, pitch and voicing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dlas.layers.mel import MelSpectrogram
from dlas.layers.pitch import yin
from dlas.layers.stft import check_resolutions, stft_distances
from dlas.metrics.base import SampleMetric
from dlas.registry import METRICS
from dlas.types import PositiveFloat, PositiveInt


def waveforms(metric: str, prediction: Tensor, target: Tensor, equal: bool = True) -> tuple[Tensor, Tensor]:
    """Both as (B, N), float32.

    Raises:
        ValueError: they are no waveforms of one channel, or differ in length where it must be `equal`.
    """
    for name, each in (("prediction", prediction), ("target", target)):
        if each.ndim not in (2, 3) or (each.ndim == 3 and each.shape[1] != 1):
            raise ValueError(f"{metric}: the {name} must be waveforms (B, 1, N) or (B, N), not {tuple(each.shape)}")
    first, second = prediction.flatten(1).float(), target.flatten(1).float()
    if equal and first.shape != second.shape:
        raise ValueError(
            f"{metric}: prediction and target have {first.shape[-1]} and {second.shape[-1]} samples; cut them alike"
        )
    return first, second


@METRICS.register("multi_resolution_stft")
class MultiResolutionSTFT(SampleMetric):
    """Spectral convergence plus mean difference of logarithms of short-time spectra, the mean over resolutions; 0 is equal.

    What the loss of the same name is with its default weights.

    Args:
        resolutions: each the length of the transform, the hop and the length of the Hann window, in samples.

    Source: Yamamoto et al., "Parallel WaveGAN", ICASSP 2020, eq. 4 to 6.
    """

    higher_is_better = False

    def __init__(self, *, resolutions: Sequence[Sequence[int]] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))) -> None:
        super().__init__()
        check_resolutions(resolutions)
        self.resolutions = resolutions

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        convergence, magnitude = stft_distances(*waveforms("multi_resolution_stft", prediction, target), self.resolutions)
        return convergence + magnitude


@METRICS.register("mel_cepstral_distortion")
class MelCepstralDistortion(SampleMetric):
    """Mel-cepstral distortion in dB, the mean over frames; lower is better, and the loudness of frames does not count.

    Cepstra are the cosine transform of log-mel spectra (1024 / 256 samples, 80 bins), scaled as mel-generalised cepstra are, so
    that the distortion is the distance of smoothed spectra in dB. Other analyses (STRAIGHT, WORLD) give other numbers: compare
    figures of one analysis only.

    Args:
        sampling_rate: in Hz.
        coefficients: how many, from the first on; the zeroth, loudness, is left out.
        align: `frames`: frame by frame, of waveforms of one length; `dtw`: along the cheapest warping of time, whose mean over
            the path is taken.

    Source: Kubichek, "Mel-cepstral distance measure for objective speech quality assessment", 1993.
    """

    higher_is_better = False

    def __init__(
        self, *, sampling_rate: PositiveInt = 24000, coefficients: PositiveInt = 24, align: Literal["frames", "dtw"] = "dtw"
    ) -> None:
        super().__init__()
        if align not in ("frames", "dtw"):
            raise ValueError(f"mel_cepstral_distortion: align is frames or dtw, not {align!r}")
        self.align = align
        self.coefficients = coefficients
        self.spectrogram = MelSpectrogram(sampling_rate=sampling_rate, mel_fmax=min(8000.0, sampling_rate / 2))

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        first, second = waveforms("mel_cepstral_distortion", prediction, target, equal=self.align == "frames")
        spectrogram = self.spectrogram.to(first.device)
        made, true = (mel_cepstra(spectrogram(each), self.coefficients) for each in (first, second))
        if self.align == "dtw":
            return warped_distance(torch.cdist(made.mT, true.mT)) * _DECIBEL
        return torch.linalg.vector_norm(made - true, dim=1).mean(-1) * _DECIBEL


_DECIBEL = 10 * math.sqrt(2) / math.log(10)


def mel_cepstra(mel: Tensor, coefficients: int) -> Tensor:
    """Cepstra c of log-mel magnitudes (B, bins, T): sum_m c_m cos(pi m (k + 1/2) / bins) is the k-th of them, without c_0.

    Returns:
        (B, coefficients, T), float64.
    """
    bins = mel.shape[1]
    order = torch.arange(1, coefficients + 1, dtype=torch.float64, device=mel.device)[:, None]
    place = torch.arange(bins, dtype=torch.float64, device=mel.device) + 0.5
    return torch.cos(math.pi * order * place / bins) @ mel.double() * (2 / bins)


def warped_distance(distances: Tensor) -> Tensor:
    """The mean distance along the path of dynamic time warping with steps of (1, 0), (0, 1) and (1, 1).

    Args:
        distances: of each frame of one to each of another, (B, T, S).

    Returns:
        (B,).

    Source: Sakoe and Chiba, IEEE Transactions on Acoustics, Speech, and Signal Processing 26(1), 1978.
    """
    batch, rows, columns = distances.shape
    row = torch.arange(rows, device=distances.device)
    # Cells of an antidiagonal depend on the two before alone; each holds (cost, steps) by row.
    nothing = torch.stack([distances.new_full((batch, rows), torch.inf), distances.new_zeros(batch, rows)])
    last, second_last = nothing, nothing
    for diagonal in range(rows + columns - 1):
        column = diagonal - row
        inside = (column >= 0) & (column < columns)
        cost = distances[:, row, column.clamp(0, columns - 1)]
        ways = torch.stack([_down(second_last), _down(last), last])  # diagonally, down, across
        way = ways[:, 0].argmin(0)
        best = ways.gather(0, way[None, None].expand(1, 2, -1, -1))[0]
        if diagonal == 0:
            best = torch.zeros_like(best)
        reached = torch.stack([best[0] + cost, best[1] + 1])
        second_last, last = last, torch.where(inside, reached, nothing)
    return last[0, :, -1] / last[1, :, -1]


def _down(cells: Tensor) -> Tensor:
    """Each row's cell, at the row below."""
    return torch.cat([cells.new_tensor([torch.inf, 0]).view(2, 1, 1).expand(-1, cells.shape[1], 1), cells[..., :-1]], -1)


class _PitchMetric(SampleMetric):
    """Compares YIN's pitch, every 256 samples, frame by frame."""

    higher_is_better = False

    def __init__(
        self,
        *,
        sampling_rate: PositiveInt = 24000,
        lowest: PositiveFloat = 60.0,
        highest: PositiveFloat = 500.0,
        threshold: PositiveFloat = 0.15,
    ) -> None:
        super().__init__()
        self.rate, self.lowest, self.highest, self.threshold = sampling_rate, lowest, highest, threshold

    def pitches(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Of both, in Hz, (B, T); 0 where a frame is unvoiced."""
        both = torch.stack(waveforms("a metric of pitch", prediction, target))
        found = yin(both.flatten(0, 1), self.rate, lowest=self.lowest, highest=self.highest, threshold=self.threshold)
        made, true = found.unflatten(0, (2, -1))
        return made, true


@METRICS.register("f0_error")
class F0Error(_PitchMetric):
    """Root mean square difference of pitch, in cents, over the frames that are voiced in both; lower is better.

    Pitch and voicing are YIN's (`dlas.layers.pitch`), every 256 samples; frames are compared one by one. Infinite where no
    frame is voiced in both: read it beside `voicing_error`.

    Args:
        sampling_rate: in Hz.
        lowest: pitch in Hz that is looked for.
        highest: pitch in Hz.
        threshold: below which YIN's normalised difference must be for a frame to be voiced.
    """

    higher_is_better = False

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        made, true = self.pitches(prediction, target)
        both = (made > 0) & (true > 0)
        cents = torch.where(both, 1200 * torch.log2(made.clamp(min=1) / true.clamp(min=1)), 0.0)
        count = both.sum(-1)
        return torch.where(count > 0, (cents.square().sum(-1) / count.clamp(min=1)).sqrt(), torch.inf)


@METRICS.register("voicing_error")
class VoicingError(_PitchMetric):
    """Share of frames that are voiced in one and not in the other, in [0, 1]; lower is better.

    Args:
        sampling_rate: in Hz.
        lowest: pitch in Hz that is looked for.
        highest: pitch in Hz.
        threshold: below which YIN's normalised difference must be for a frame to be voiced.
    """

    higher_is_better = False

    def measure(self, prediction: Tensor, target: Tensor) -> Tensor:
        made, true = self.pitches(prediction, target)
        return ((made > 0) != (true > 0)).double().mean(-1)
