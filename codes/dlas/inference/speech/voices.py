"""Voices: what the networks heard of a speaker's clips."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlas.context import Context
from dlas.data.audio.files import SUFFIXES, read_sound
from dlas.errors import CheckpointError, ConfigurationError, DataError
from dlas.inference.speech.codes import CODE_RATE, SOUND_RATE
from dlas.inference.speech.models import Models
from dlas.layers.mel import MelSpectrogram, resample

LATENTS = frozenset({".safetensors", ".pth"})


@dataclass(frozen=True)
class Voice:
    """A voice.

    Args:
        speech: latent of the autoregressive model, (1, channels), float32, on the CPU like the others.
        sound: of the decoder, (1, channels).
        clips: spectrograms for CVVP, (clips, bins, frames); None where a voice was saved without.
        name: for reports.
    """

    speech: Tensor
    sound: Tensor
    clips: Tensor | None = None
    name: str = ""

    def save(self, path: str | Path) -> None:
        """Writes a .safetensors file, which `load` reads."""
        tensors = {"speech": self.speech, "sound": self.sound, "clips": self.clips}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, path)

    @staticmethod
    def load(path: str | Path) -> Voice:
        """Reads what `save` wrote, or a .pth of tortoise-tts: a pair of latents.

        Raises:
            CheckpointError: the file cannot be read, or holds something else.
        """
        path = Path(path)
        try:
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path}: cannot be read as the latents of a voice ({error}); make it again") from error
        if isinstance(found, tuple | list) and len(found) == 2:
            found = dict(zip(("speech", "sound"), found, strict=True))
        if not isinstance(found, dict) or not all(isinstance(found.get(key), Tensor) for key in ("speech", "sound")):
            raise CheckpointError(f"{path}: no latents of a voice: expected tensors 'speech' and 'sound', or a pair of tensors")
        return Voice(found["speech"].float(), found["sound"].float(), found.get("clips"), path.name)


class VoiceReader:
    """Makes voices for some networks.

    Args:
        models: the networks.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        device = models.mel_norms.device
        self._for_speech = MelSpectrogram(power=2, scale="htk", n_mel_channels=len(models.mel_norms)).to(device)
        bins = models.decoder.inp_block.in_channels
        self._for_sound = MelSpectrogram(sampling_rate=SOUND_RATE, n_mel_channels=bins, mel_fmax=SOUND_RATE / 2).to(device)

    def read(self, path: str | Path) -> Voice:
        """A folder of clips, a clip, or a file of latents.

        Raises:
            DataError: there is no such path, or no clip in it, or one that cannot be read.
            CheckpointError: the latents are of other networks.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() in LATENTS and path.is_file():
            voice = Voice.load(path)
            self._check(voice, path)
            return voice
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not files:
                raise DataError(f"{path}: no clips in this folder; expected files that end in {', '.join(SUFFIXES)}")
        elif path.is_file():
            files = [path]
        else:
            raise DataError(f"{path}: no such voice; expected a folder of clips, a clip, or latents (.safetensors, .pth)")
        return self.of_clips([(read_sound(file, CODE_RATE), CODE_RATE) for file in files], path.name)

    @torch.inference_mode()
    def of_clips(self, clips: Sequence[tuple[Tensor, int]], name: str = "") -> Voice:
        """The voice of clips, (N,) each, with their rates in Hz.

        Of a long clip the networks hear what they heard in training: the autoregressive model its middle, the decoder its
        beginning. A short one is followed by silence.
        """
        told, device = self.models.description, self.models.mel_norms.device
        at_code_rate = [resample(clip, rate, CODE_RATE).to(device) for clip, rate in clips]
        middles = torch.stack([_middle(clip, told.clip_samples) for clip in at_code_rate])
        speech = self._for_speech(middles) / self.models.mel_norms[:, None]
        starts = [resample(clip, CODE_RATE, SOUND_RATE)[: told.decoder_clip_samples] for clip in at_code_rate]
        sound = self._for_sound(torch.stack([F.pad(s, (0, told.decoder_clip_samples - len(s))) for s in starts]).clamp(-1, 1))
        for_speech = self.models.gpt.conditioning(speech[None].to(self.models.dtype))
        for_sound = self.models.decoder.conditioning(sound[None].to(self.models.dtype))
        return Voice(for_speech.float().cpu(), for_sound.float().cpu(), speech.cpu(), name)

    @torch.inference_mode()
    def random(self, seed: int) -> Voice:
        """A voice that nobody has.

        Raises:
            ConfigurationError: the folder of the networks lacks those for it.
        """
        if self.models.random_voices is None:
            raise ConfigurationError(f"random voices need rlg_auto.pth and rlg_diffuser.pth in {self.models.source}")
        latents = []
        for network, stream in zip(self.models.random_voices, ("voice of speech", "voice of sound"), strict=True):
            noise = Context({}, seed=seed, positions=[0]).randn((network.channels,), stream)
            latents.append(network(noise.to(self.models.mel_norms.device, self.models.dtype)).float().cpu())
        return Voice(latents[0], latents[1], name=f"random {seed}")

    def _check(self, voice: Voice, path: Path) -> None:
        expected = (1, self.models.gpt.gpt.channels), (1, 2 * self.models.decoder.channels)
        found = tuple(voice.speech.shape), tuple(voice.sound.shape)
        if found != expected:
            raise CheckpointError(f"{path}: latents of other networks: expected {expected}, found {found}; make them of clips")


def _middle(clip: Tensor, length: int) -> Tensor:
    begin = max(0, len(clip) - length) // 2
    stretch = clip[begin : begin + length]
    return F.pad(stretch, (0, length - len(stretch)))
