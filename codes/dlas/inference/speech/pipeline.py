"""From a text and a voice to sound: TorToiSe's networks one after the other.

Betker, "Better speech synthesis through scaling", 2023 (arXiv:2305.07243), section 3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dlas.archs.speech.univnet import TAIL
from dlas.context import Context, mix_seed
from dlas.diffusion.sampling import START, seeded_noise
from dlas.engine.device import choose_device
from dlas.engine.precision import DTYPES
from dlas.errors import ConfigurationError
from dlas.inference.speech.codes import SOUND_RATE, frames_of, spoken_length, with_silent_end
from dlas.inference.speech.models import Models
from dlas.inference.speech.presets import Settings, settings_of
from dlas.inference.speech.sentences import split_text
from dlas.inference.speech.stages import features_of, fit_to_text, fit_to_voice, spectrogram_of
from dlas.inference.speech.voices import Voice, VoiceReader


@dataclass
class Clock:
    """Seconds by stage.

    Args:
        device: is waited for.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what is done within to a stage."""
        begun = time.perf_counter()
        yield
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


class Spoken(NamedTuple):
    """A piece of a text as sound.

    Attributes:
        text: the piece.
        sound: (N,), float32, in [-1, 1], on the CPU, at `SOUND_RATE`.
        codes: that were heard, (L,).
        score: of the candidate, by which it was chosen.
        seconds: spent, by stage.
    """

    text: str
    sound: Tensor
    codes: Tensor
    score: float
    seconds: dict[str, float]

    @property
    def duration(self) -> float:
        """Of the sound, in seconds."""
        return len(self.sound) / SOUND_RATE

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of sound."""
        return sum(self.seconds.values()) / self.duration


class Speaker:
    """Speaks.

    Args:
        models: the networks.
        device: where they are.
    """

    def __init__(self, models: Models, device: torch.device) -> None:
        self.models, self.device = models, device
        self.voices = VoiceReader(models)

    @staticmethod
    def load(folder: str | Path, *, device: str = "auto", precision: str = "fp32", compile: bool = False) -> Speaker:
        """A speaker with the networks of a folder; see `Models.load`.

        Args:
            folder: where they are.
            device: auto, cpu, cuda, cuda:1, mps.
            precision: fp32, bf16 or fp16: of all networks but the vocoder.
            compile: compile the decoder and the vocoder, which takes minutes at first.

        Raises:
            CheckpointError: a file is missing or does not fit.
            ConfigurationError: the device or the precision does not exist here.
        """
        if precision not in DTYPES:
            raise ConfigurationError(f"precision is one of {', '.join(DTYPES)}; got '{precision}'")
        chosen = choose_device(device)
        return Speaker(Models.load(folder, chosen, DTYPES[precision], compile), chosen)

    def say(self, text: str, voice: Voice, *, preset: str = "fast", seed: int = 0, **settings: Any) -> Iterator[Spoken]:
        """Says a text, piece by piece: each is given as soon as it is done.

        The same text, voice, seed and settings give the same sound on the same machine.

        Args:
            text: of any length.
            voice: of `voices`.
            preset: see `PRESETS`.
            seed: another one is another performance.
            settings: see `Settings`; they replace those of the preset.

        Raises:
            ConfigurationError: a setting is wrong, or these networks cannot follow it.
            DataError: there is nothing to say.
        """
        chosen = settings_of(preset, **settings)
        most = self.models.gpt.mel_pos_embedding.emb.num_embeddings - 2  # for start and stop
        if "max_codes" not in settings:  # a preset's is for the published networks
            chosen = replace(chosen, max_codes=min(chosen.max_codes, most))
        if chosen.max_codes > most:
            raise ConfigurationError(f"max_codes is {chosen.max_codes}, and these networks say {most} codes at once at most")
        if chosen.voice_share and self.models.cvvp is None:
            raise ConfigurationError(f"voice_share needs cvvp.pth, which {self.models.source} lacks; take 0")
        if chosen.voice_share and voice.clips is None:
            raise ConfigurationError(f"voice_share needs the clips of the voice '{voice.name}', of which it has latents only")
        room = self.models.gpt.text_pos_embedding.emb.num_embeddings - 3  # the text's start, its end, and the end once more

        def fits(piece: str) -> bool:
            return len(piece) <= chosen.longest_text and len(self.models.tokenizer.encode(piece)) <= room

        pieces = split_text(text, fits)
        return (self._say(piece, voice, chosen, mix_seed(seed, place)) for place, piece in enumerate(pieces))

    @torch.inference_mode()
    def _say(self, text: str, voice: Voice, settings: Settings, seed: int) -> Spoken:
        clock, models = Clock(self.device), self.models
        tokens = torch.tensor([[*models.tokenizer.encode(text), 0]], device=self.device)
        speech = voice.speech.to(self.device, models.dtype)
        with clock.stage("codes"):
            candidates = self._candidates(tokens, speech, settings, seed)
        with clock.stage("ranking"):
            scores = self._scores(tokens, candidates, voice, settings)
            best = int(scores.argmax())
            codes = self._heard(candidates[best])[None]
        with clock.stage("features"):
            aligned = features_of(models.gpt, speech, tokens, codes) if models.description.decoder_reads == "latents" else codes
        with clock.stage("spectrogram"):
            frames = frames_of(codes.shape[1])
            mel = spectrogram_of(
                models.decoder,
                models.process,
                aligned,
                voice.sound.to(self.device, models.dtype),
                frames,
                self._noise(seed, (models.decoder.inp_block.in_channels, frames), settings.start_noise),
                steps=settings.steps,
                sampler=settings.sampler,
                guidance=settings.guidance,
                prediction=models.description.decoder_predicts,  # type: ignore[arg-type]  # as `Description.read` checks
            )
        with clock.stage("sound"):
            z = seeded_noise(seed, [0], (models.vocoder.noise_dim, frames + TAIL), stream="vocoder")(0)
            sound = models.vocoder.inference(mel, z.to(self.device))[0, 0].cpu()
        return Spoken(text, sound, codes[0].cpu(), float(scores[best]), clock.seconds)

    def _candidates(self, tokens: Tensor, voice: Tensor, settings: Settings, seed: int) -> Tensor:
        """(candidates, max_codes)."""
        places = range(settings.candidates)
        uniforms = Context({}, seed=seed, positions=places).rand((settings.max_codes,), "codes").to(self.device)
        sampling, generate = settings.sampling(), self.models.gpt.generate
        return torch.cat([generate(voice, tokens, part, sampling) for part in uniforms.split(settings.batch)])

    def _scores(self, tokens: Tensor, candidates: Tensor, voice: Voice, settings: Settings) -> Tensor:
        """(candidates,)."""
        found = []
        for codes in candidates.split(settings.batch):
            shown, keep = self._shown(codes)
            score = fit_to_text(self.models.clvp, tokens, shown, keep)
            if settings.voice_share:
                assert self.models.cvvp is not None and voice.clips is not None
                clips = voice.clips.to(self.device, self.models.dtype)
                by_voice = fit_to_voice(self.models.cvvp, clips, shown, keep)
                score = torch.lerp(score, by_voice, settings.voice_share)
            found.append(score)
        return torch.cat(found)

    def _shown(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes as the ranking networks know them, and which of them are said, (N, L) bool; None: all."""
        told, gpt = self.models.description, self.models.gpt
        if told.silence is None:
            said = ((codes == gpt.stop_mel).cumsum(1) == 0).index_fill(1, torch.tensor(0, device=codes.device), True)
            return codes.masked_fill(codes >= self.models.clvp.speech_emb.num_embeddings, 0), said
        shown = with_silent_end(codes, gpt.stop_mel, told.silence, told.ending)
        # The start token can be drawn in the middle, and these networks have no such code.
        return shown.masked_fill(shown >= self.models.clvp.speech_emb.num_embeddings, told.silence), None

    def _heard(self, codes: Tensor) -> Tensor:
        """A candidate up to its end, at least one code."""
        told, gpt = self.models.description, self.models.gpt
        if told.silence is None:
            return codes[: max(1, int(((codes == gpt.stop_mel).cumsum(0) == 0).sum()))]
        filled = with_silent_end(codes[None], gpt.stop_mel, told.silence, told.ending)[0]
        return filled[: max(1, spoken_length(filled, told.silence, told.calm))]

    def _noise(self, seed: int, shape: tuple[int, int], start: float) -> Callable[[int], Tensor]:
        """Made on the CPU, so that it is the same on every device."""
        noise = seeded_noise(seed, [0], shape, stream="spectrogram")
        return lambda k: noise(k).to(self.device) * (start if k == START else 1.0)
