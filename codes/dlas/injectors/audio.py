"""Injectors of sound: spectrograms, parts, rates, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlas.context import Context, mix_seed
from dlas.errors import ConfigurationError, DataError
from dlas.host import sent, unattended
from dlas.injectors.base import Injector, State
from dlas.layers.mel import HIGHEST_POWER, MelSpectrogram, normalise_mel, resample
from dlas.registry import INJECTORS
from dlas.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, StateIn, StateOut


@INJECTORS.register("mel_spectrogram")
class MelSpectrogramInjector(Injector):
    """Log-mel spectrograms of magnitudes, as NVIDIA's Tacotron 2 makes them: what decoder and vocoder of TorToiSe read.

    Args:
        in_: sound, (B, N) or (B, 1, N); beyond [-1, 1] it is cut off.
        out: (B, n_mel_channels, 1 + N // hop_length), float32, natural logarithms.
        filter_length: of the Fourier transform, in samples.
        hop_length: samples a frame.
        win_length: of the Hann window.
        n_mel_channels: bins.
        mel_fmin: lowest frequency, in Hz.
        mel_fmax: highest.
        sampling_rate: of the sound, in Hz.
        do_normalization: bring [ln 1e-5, 2.3143] to [-1, 1].
    """

    detaches = True

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        filter_length: PositiveInt = 1024,
        hop_length: PositiveInt = 256,
        win_length: PositiveInt = 1024,
        n_mel_channels: PositiveInt = 80,
        mel_fmin: NonNegativeFloat = 0.0,
        mel_fmax: PositiveFloat = 8000.0,
        sampling_rate: PositiveInt = 22050,
        do_normalization: bool = False,
    ) -> None:
        self.input, self.out, self.normalize = in_, out, do_normalization
        self.spectrogram = MelSpectrogram(
            sampling_rate=sampling_rate,
            filter_length=filter_length,
            hop_length=hop_length,
            win_length=win_length,
            n_mel_channels=n_mel_channels,
            mel_fmin=mel_fmin,
            mel_fmax=mel_fmax,
        )

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        sound: Tensor = state[self.input]
        with torch.no_grad():
            mel = self.spectrogram.to(sound.device, non_blocking=unattended(sound.device))(sound.clamp(-1, 1))
            return {self.out: normalise_mel(mel) if self.normalize else mel}


@INJECTORS.register("torch_mel_spectrogram")
class TorchMelSpectrogramInjector(Injector):
    """Log-mel spectrograms of powers, as torchaudio makes them: what the autoregressive model of TorToiSe and its codes are of.

    Args:
        in_: sound, (B, N) or (B, 1, N).
        out: (B, n_mel_channels, 1 + N // hop_length), float32, natural logarithms.
        filter_length: of the Fourier transform, in samples.
        hop_length: samples a frame.
        win_length: of the Hann window.
        n_mel_channels: bins.
        mel_fmin: lowest frequency, in Hz.
        mel_fmax: highest.
        sampling_rate: of the sound, in Hz.
        normalize: powers are over the sum of the squared window.
        true_normalization: bring [ln 1e-5, 4.82] to [-1, 1].
        mel_norm_file: divide each bin by a number of this file: a tensor (n_mel_channels,) that torch has saved, such as
            mel_norms.pth of tortoise-tts.

    Raises:
        ConfigurationError: `true_normalization` and `mel_norm_file` are given together.
        DataError: `mel_norm_file` is missing or holds something else.
    """

    detaches = True

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        filter_length: PositiveInt = 1024,
        hop_length: PositiveInt = 256,
        win_length: PositiveInt = 1024,
        n_mel_channels: PositiveInt = 80,
        mel_fmin: NonNegativeFloat = 0.0,
        mel_fmax: PositiveFloat = 8000.0,
        sampling_rate: PositiveInt = 22050,
        normalize: bool = False,
        true_normalization: bool = False,
        mel_norm_file: str | None = None,
    ) -> None:
        if true_normalization and mel_norm_file is not None:
            raise ConfigurationError("torch_mel_spectrogram: true_normalization and mel_norm_file both normalise; give one")
        self.input, self.out, self.signed = in_, out, true_normalization
        self.spectrogram = MelSpectrogram(
            sampling_rate=sampling_rate,
            filter_length=filter_length,
            hop_length=hop_length,
            win_length=win_length,
            n_mel_channels=n_mel_channels,
            mel_fmin=mel_fmin,
            mel_fmax=mel_fmax,
            power=2,
            scale="htk",
        )
        # Powers over a constant are those of sound over its root.
        self.gain = 1 / torch.hann_window(win_length).square().sum().sqrt() if normalize else None
        self.norms = None if mel_norm_file is None else read_mel_norms(mel_norm_file, n_mel_channels)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        sound: Tensor = state[self.input]
        with torch.no_grad():
            spectrogram = self.spectrogram.to(sound.device, non_blocking=unattended(sound.device))
            mel = spectrogram(sound if self.gain is None else sound * self.gain)
            if self.signed:
                mel = normalise_mel(mel, HIGHEST_POWER)
            if self.norms is not None:
                self.norms = sent(self.norms, mel.device)
                mel = mel / self.norms[:, None]
            return {self.out: mel}


def read_mel_norms(path: str, bins: int) -> Tensor:
    """The divisor of each bin, (bins,), float32.

    Raises:
        DataError: the file is missing, or holds anything but so many numbers.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"no file at mel_norm_file {path}; tortoise-tts has one, tortoise/data/mel_norms.pth")
    try:
        norms = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise DataError(f"mel_norm_file {path} is no file that torch has saved: {error}") from error
    if not isinstance(norms, Tensor) or norms.shape != (bins,):
        found = f"a tensor {tuple(norms.shape)}" if isinstance(norms, Tensor) else f"a {type(norms).__name__}"
        raise DataError(f"mel_norm_file {path} holds {found}; expected {bins} numbers, one for each bin")
    return norms.float()


@INJECTORS.register("normalize_mel")
class NormalizeMelInjector(Injector):
    """Brings log-mel spectrograms of magnitudes from [ln 1e-5, 2.3143] to [-1, 1].

    Args:
        in_: what `mel_spectrogram` makes.
        out: the same shape.
    """

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.input, self.out = in_, out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: normalise_mel(state[self.input])}


@INJECTORS.register("random_audio_crop")
class RandomAudioCropInjector(Injector):
    """A random part of each sample's sound, all of one length; what is shorter is taken whole.

    Each sample has a place of its own (in DL-Art-School a batch has one place).

    Args:
        in_: sound, (B, ..., N).
        out: (B, ..., length).
        crop_size: length of the parts, in samples.
        min_crop_size: in place of `crop_size`: a length from here ..
        max_crop_size: .. to here is drawn for each batch.
        lengths_key: samples of each sound without what it is filled up with, (B,): parts lie within them.
        crop_start_key: where parts begin, (B,), is written here.
        min_buffer: so many samples at the beginning are in no part.

    Raises:
        ConfigurationError: no length is given, or two.

    Example:
        in: clip
        out: part
        crop_size: 44100
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        crop_size: PositiveInt | None = None,
        min_crop_size: PositiveInt | None = None,
        max_crop_size: PositiveInt | None = None,
        lengths_key: StateIn | None = None,
        crop_start_key: StateOut | None = None,
        min_buffer: NonNegativeInt = 0,
    ) -> None:
        low = min_crop_size if crop_size is None else crop_size
        high = max_crop_size if crop_size is None else crop_size
        ranged = min_crop_size is not None or max_crop_size is not None
        if low is None or high is None or low > high or (ranged and crop_size is not None):
            raise ConfigurationError(
                "random_audio_crop: give crop_size, or min_crop_size and max_crop_size, which is not below it; given: "
                f"{crop_size}, {min_crop_size}, {max_crop_size}"
            )
        self.input, self.out, self.sizes = in_, out, (low, high)
        self.lengths, self.starts, self.buffer = lengths_key, crop_start_key, min_buffer

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        sound: Tensor = state[self.input]
        low, high = self.sizes
        size = low + mix_seed(context.seed, context.step, self.out, "size") % (high - low + 1)
        size = min(size, sound.shape[-1])
        length = state[self.lengths] if self.lengths is not None else torch.full((), sound.shape[-1], device=sound.device)
        room = (length - size - self.buffer).clamp(min=0)
        drawn = context.rand((), f"random_audio_crop:{self.out}", sound.device)
        starts = (drawn * (room + 1)).long().clamp(max=room) + self.buffer
        starts = starts.clamp(max=sound.shape[-1] - size)
        places = starts[:, None] + torch.arange(size, device=sound.device)
        places = places.view(len(sound), *(1,) * (sound.dim() - 2), size).expand(*sound.shape[:-1], size)
        found = {self.out: sound.gather(-1, places)}
        return found if self.starts is None else found | {self.starts: starts}


@INJECTORS.register("audio_clip")
class AudioClipInjector(Injector):
    """The beginning of sound, and of codes that go with it.

    Args:
        in_: sound, (B, ..., N).
        out: (B, ..., at most clip_size).
        clip_size: samples.
        ctc_codes_key: codes that are spread evenly over the sound, (B, S).
        ctc_out_key: those of the beginning.

    Raises:
        ConfigurationError: only one of `ctc_codes_key` and `ctc_out_key` is given.
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        clip_size: PositiveInt,
        ctc_codes_key: StateIn | None = None,
        ctc_out_key: StateOut | None = None,
    ) -> None:
        if (ctc_codes_key is None) != (ctc_out_key is None):
            raise ConfigurationError("audio_clip: ctc_codes_key and ctc_out_key go together; give both or neither")
        self.input, self.out, self.size = in_, out, clip_size
        self.codes, self.codes_out = ctc_codes_key, ctc_out_key

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        sound: Tensor = state[self.input]
        found = {self.out: sound[..., : self.size]}
        if self.codes is None or self.codes_out is None:
            return found
        codes: Tensor = state[self.codes]
        kept = -(-codes.shape[-1] * min(self.size, sound.shape[-1]) // sound.shape[-1])
        return found | {self.codes_out: codes[..., :kept]}


@INJECTORS.register("audio_resample")
class AudioResampleInjector(Injector):
    """Changes the sampling rate, as torchaudio does.

    Args:
        in_: sound, (B, ..., N).
        out: (B, ..., ceil(N output_sample_rate / input_sample_rate)).
        input_sample_rate: in Hz.
        output_sample_rate: in Hz.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, input_sample_rate: PositiveInt, output_sample_rate: PositiveInt) -> None:
        self.input, self.out, self.rates = in_, out, (input_sample_rate, output_sample_rate)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: resample(state[self.input], *self.rates)}


@INJECTORS.register("mel_mask")
class MelMaskInjector(Injector):
    """Sets stripes of bins and of frames to zero, in training; each sample has its own.

    Args:
        in_: spectrograms, (B, bins, T).
        out: the same shape.
        frequency_mask_size_high: a stripe of bins has fewer than this.
        frequency_mask_count: such stripes.
        time_mask_size_high: a stripe of frames has fewer than this.
        time_mask_count: such stripes.

    Source: Park et al. 2019 (arXiv:1904.08779), without its warping of time.
    """

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        frequency_mask_size_high: PositiveInt = 27,
        frequency_mask_count: NonNegativeInt = 1,
        time_mask_size_high: PositiveInt = 5,
        time_mask_count: NonNegativeInt = 3,
    ) -> None:
        self.input, self.out = in_, out
        self.bins = (frequency_mask_count, frequency_mask_size_high)
        self.frames = (time_mask_count, time_mask_size_high)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        mel: Tensor = state[self.input]
        if not context.training:
            return {self.out: mel}
        bins = self._covered(mel.shape[1], *self.bins, "bins", mel.device, context)
        frames = self._covered(mel.shape[2], *self.frames, "frames", mel.device, context)
        return {self.out: mel.masked_fill(bins[:, :, None] | frames[:, None], 0)}

    def _covered(self, size: int, count: int, high: int, what: str, device: torch.device, context: Context) -> Tensor:
        """Which of `size` places lie under one of `count` stripes, (B, size)."""
        drawn = context.rand((2, count, 1), f"mel_mask:{self.out}:{what}", device)
        widths = (drawn[:, 0] * high).long().clamp(max=min(high - 1, size))
        starts = (drawn[:, 1] * (size - widths + 1)).long()
        place = torch.arange(size, device=device)
        return ((place >= starts) & (place < starts + widths)).any(1)
