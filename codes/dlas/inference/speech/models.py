"""The networks that speak, from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from dlas.archs import create_network
from dlas.archs.speech.clvp import CLVP2
from dlas.archs.speech.cvvp import CVVP
from dlas.archs.speech.diffusion_tts import DiffusionTTS
from dlas.archs.speech.random_latents import RandomLatentConverter
from dlas.archs.speech.unified_voice import UnifiedVoice
from dlas.archs.speech.univnet import UnivNet
from dlas.data.text.tokenizer import VoiceTokenizer
from dlas.diffusion import create_process
from dlas.diffusion.processes import Timesteps
from dlas.errors import CheckpointError, ConfigurationError
from dlas.inference.speech.codes import CALM, ENDING, SILENCE
from dlas.interop.state_dicts import load_into, read_state_dict
from dlas.layers.packed_linear import pack_linear_layers
from dlas.layers.weight_norm import fold_weight_norm
from dlas.registry import nearest

SIZES = "speech.yml"
"""The file that tells what differs from the published networks."""

_UNIFIED_VOICE = {
    "layers": 30,
    "model_dim": 1024,
    "heads": 16,
    "max_text_tokens": 402,
    "max_mel_tokens": 604,
    "max_conditioning_inputs": 2,
    "number_text_tokens": 255,
}
_DECODER = {"model_channels": 1024, "num_layers": 10, "in_latent_channels": 1024}


@dataclass(frozen=True)
class Description:
    """What `speech.yml` may tell; the defaults are the published networks.

    Args:
        autoregressive: options of `unified_voice2`, in place of the published ones, as are those of the next four.
        clvp: of `clvp2`.
        cvvp: of `cvvp`.
        diffusion_decoder: of `diffusion_tts_flat`.
        vocoder: of `univnet`.
        diffusion: process that the decoder was trained with.
        decoder_predicts: eps (the noise), or x0 (the spectrogram), as it was trained.
        decoder_reads: latents (features of the autoregressive model), or codes, for a decoder that was trained on them only.
        cleaner: of texts: english, basic or transliteration.
        training_signs: see `VoiceTokenizer`.
        silence: the code of silence, by which utterances are filled up and cut; null: they end with the stop token.
        ending: the last codes of those that are filled up.
        calm: so many codes of silence end what is heard.
        clip_samples: how much of a clip the autoregressive model hears, at 22,050 Hz.
        decoder_clip_samples: and the decoder, at 24,000 Hz.
    """

    autoregressive: Mapping[str, Any] = field(default_factory=lambda: _UNIFIED_VOICE)
    clvp: Mapping[str, Any] = field(default_factory=dict)
    cvvp: Mapping[str, Any] = field(default_factory=lambda: {"mel_codes": 8192})
    diffusion_decoder: Mapping[str, Any] = field(default_factory=lambda: _DECODER)
    vocoder: Mapping[str, Any] = field(default_factory=dict)
    diffusion: Mapping[str, Any] = field(default_factory=lambda: {"type": "vp", "schedule": "linear", "steps": 4000})
    decoder_predicts: str = "eps"
    decoder_reads: str = "latents"
    cleaner: str = "english"
    training_signs: bool = False
    silence: int | None = SILENCE
    ending: tuple[int, ...] = ENDING
    calm: int = CALM
    clip_samples: int = 132300
    decoder_clip_samples: int = 102400

    @staticmethod
    def read(folder: Path) -> Description:
        """What the folder's file tells, if there is one.

        Raises:
            ConfigurationError: it is not YAML, or an entry is unknown or of another kind than is expected.
        """
        path = folder / SIZES
        if not path.is_file():
            return Description()
        try:
            told = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{path}: cannot be read as YAML: {error}") from error
        if not isinstance(told, dict):
            raise ConfigurationError(f"{path}: expected entries such as 'autoregressive: {{layers: 6}}', found {told!r}")
        standard = Description()
        known = [each.name for each in fields(Description)]
        for name, value in told.items():
            if name not in known:
                close = nearest(str(name), known)
                raise ConfigurationError(
                    f"{path}: unknown entry '{name}'; "
                    + (f"did you mean '{close}'?" if close else f"known: {', '.join(known)}")
                )
            kind = Mapping if isinstance(getattr(standard, name), Mapping) else type(getattr(standard, name))
            if name == "ending":
                value = told[name] = tuple(value) if isinstance(value, list) else value
            if not isinstance(value, kind) and not (name == "silence" and value is None):
                raise ConfigurationError(f"{path}: {name}: expected {kind.__name__}, found {value!r}")
        for name, choices in (
            ("decoder_predicts", ("eps", "x0")),
            ("decoder_reads", ("latents", "codes")),
            ("cleaner", ("english", "basic", "transliteration")),
        ):
            if told.get(name, choices[0]) not in choices:
                raise ConfigurationError(f"{path}: {name} is one of {', '.join(choices)}; found '{told[name]}'")
        return Description(**told)


@dataclass
class Models:
    """Networks, in evaluation mode, on one device.

    Attributes:
        description: their sizes and constants.
        tokenizer: of texts.
        gpt: text and a voice to codes.
        clvp: which codes fit a text.
        cvvp: which fit a voice; None where there is no such file.
        decoder: codes to a spectrogram.
        process: of the decoder.
        vocoder: a spectrogram to sound.
        random_voices: noise to latents, of `gpt` and `decoder`; None where there are no such files.
        mel_norms: what spectrograms for `gpt` are divided by, (bins,).
        dtype: of all but the vocoder.
        source: the folder.
    """

    description: Description
    tokenizer: VoiceTokenizer
    gpt: UnifiedVoice
    clvp: CLVP2
    cvvp: CVVP | None
    decoder: DiffusionTTS
    process: Timesteps
    vocoder: UnivNet
    random_voices: tuple[RandomLatentConverter, RandomLatentConverter] | None
    mel_norms: torch.Tensor
    dtype: torch.dtype
    source: str

    @staticmethod
    def load(folder: str | Path, device: torch.device, dtype: torch.dtype = torch.float32, compile: bool = False) -> Models:
        """Reads a folder of TorToiSe's files.

        They are autoregressive.pth, clvp2.pth, diffusion_decoder.pth, vocoder.pth, tokenizer.json, mel_norms.pth, and if they
        are there cvvp.pth, rlg_auto.pth and rlg_diffuser.pth. Each .pth may be a .safetensors.

        Args:
            folder: where they are.
            device: of the networks.
            dtype: of the networks but the vocoder.
            compile: compile the decoder and the vocoder when they are first used.

        Raises:
            CheckpointError: a file is missing or does not fit.
            ConfigurationError: `speech.yml` is wrong.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder; expected one with autoregressive.pth and the other networks")
        told = Description.read(folder)
        read = _Reader(folder, device, dtype)
        read.expect("autoregressive", "clvp2", "diffusion_decoder", "vocoder", "mel_norms")
        process = create_process(told.diffusion)
        if not isinstance(process, Timesteps):
            raise ConfigurationError(f"{folder / SIZES}: diffusion: a process with timesteps is needed, such as vp")
        gpt = read.network("autoregressive", "unified_voice2", told.autoregressive)
        decoder = read.network("diffusion_decoder", "diffusion_tts_flat", told.diffusion_decoder, compile=compile)
        random_voices = None
        if read.has("rlg_auto") and read.has("rlg_diffuser"):
            random_voices = (
                read.network("rlg_auto", "random_latent_converter", {"channels": gpt.gpt.channels}),
                read.network("rlg_diffuser", "random_latent_converter", {"channels": 2 * decoder.channels}),
            )
        return Models(
            told,
            VoiceTokenizer(folder / "tokenizer.json", told.cleaner, told.training_signs),  # type: ignore[arg-type]
            gpt,
            read.network("clvp2", "clvp2", told.clvp),
            read.network("cvvp", "cvvp", told.cvvp) if read.has("cvvp") else None,
            decoder,
            process,
            read.network("vocoder", "univnet", told.vocoder, torch.float32, compile),
            random_voices,
            read.vector("mel_norms").to(device),
            dtype,
            str(folder),
        )


@dataclass(frozen=True)
class _Reader:
    folder: Path
    device: torch.device
    dtype: torch.dtype

    def expect(self, *names: str) -> None:
        """Refuses a folder that lacks a file, and names all that it lacks."""
        missing = [f"{name}.pth" for name in names if not self.has(name)]
        if not (self.folder / "tokenizer.json").is_file():
            missing.append("tokenizer.json")
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {', '.join(missing)}; expected the files of tortoise-tts (each .pth may be "
                f"a .safetensors), or networks of other sizes and a {SIZES} that tells them"
            )

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def _path(self, name: str) -> Path:
        path = self.folder / f"{name}.safetensors"
        return path if path.is_file() else self.folder / f"{name}.pth"

    def network(
        self, name: str, kind: str, options: Mapping[str, Any], dtype: torch.dtype | None = None, compile: bool = False
    ) -> Any:
        """Builds and loads a network, ready for inference."""
        path, dtype = self._path(name), dtype or self.dtype
        network = create_network({**options, "which_model": kind}, name=name)
        load_into(network, read_state_dict(path), source=f"{path} (sizes: {SIZES})")
        network.eval().requires_grad_(False).to(self.device, dtype)
        if compile:  # packed weights cannot be compiled
            fold_weight_norm(network).compile(dynamic=True)
            return network
        return network.fold() if isinstance(network, UnivNet) else pack_linear_layers(network)

    def vector(self, name: str) -> torch.Tensor:
        """A file that holds one tensor of one axis."""
        path = self._path(name)
        try:
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        except Exception as error:  # damaged bytes surface as errors of many types
            raise CheckpointError(f"{path}: cannot be read ({error}); expected one tensor. Copy it again") from error
        if isinstance(found, dict) and len(found) == 1:
            found = next(iter(found.values()))
        if not isinstance(found, torch.Tensor) or found.ndim != 1:
            raise CheckpointError(f"{path}: expected one tensor with a number for each bin of the spectrogram")
        return found.float()
