"""Injectors of speech that ask frozen networks: codes, features of the autoregressive model, the moments of voices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.context import Context
from dlas.errors import TrainingError
from dlas.injectors.audio import TorchMelSpectrogramInjector
from dlas.injectors.base import Injector, State
from dlas.injectors.networks import evaluation_mode
from dlas.registry import INJECTORS
from dlas.types import NetworkName, PositiveInt, StateIn, StateOut


def codes_of(network: Any, name: str, mel: Tensor) -> Tensor:
    """Codes of spectrograms (B, bins, T), one for each `network.factor` frames that are begun, (B, S).

    Raises:
        TrainingError: the network has no `get_codebook_indices`.
    """
    if not hasattr(network, "get_codebook_indices"):
        raise TrainingError(f"network '{name}' makes no codes: it has no get_codebook_indices; name a discrete autoencoder")
    missing = -mel.shape[-1] % getattr(network, "factor", 1)
    with torch.no_grad(), evaluation_mode(network):
        codes: Tensor = network.get_codebook_indices(F.pad(mel, (0, missing)))
        return codes


@INJECTORS.register("discrete_token")
class DiscreteTokenInjector(Injector):
    """The codes of spectrograms, by a discrete autoencoder that is a network of this file and is not trained by the step.

    Its weights come from `path.pretrain`. DL-Art-School names another run's file in its place (`dvae_config`): write the
    network into this one. There is a code more than `hop * factor` samples go into the sound, 1024 for TorToiSe's; a slice
    with `end: -1` leaves as many.

    Args:
        in_: spectrograms, (B, bins, T).
        out: codes, (B, S), int64, S being T over the frames of a code, rounded up.
        dvae_name: the autoencoder: `lucidrains_dvae`, `dvae` with `positional_dims: 1`, or what else has
            `get_codebook_indices`.

    Example:
        in: mel
        out: codes
        dvae_name: dvae
    """

    detaches = True

    def __init__(self, *, in_: StateIn, out: StateOut, dvae_name: NetworkName = "dvae") -> None:
        self.input, self.out, self.network = in_, out, dvae_name

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: codes_of(context.network(self.network), self.network, state[self.input])}


@INJECTORS.register("gpt_voice_latent")
class GptVoiceLatentInjector(Injector):
    """What the autoregressive model makes of speech that it is given: the features that the decoder by diffusion reads.

    Sound becomes codes, and these, with their text and a clip of the voice, features. Both networks are of this file (in
    DL-Art-School of others: `dvae_config`, `gpt_config`, `gpt_path`), and are not trained by the step.

    Args:
        in_: sound at 22.05 kHz, (B, 1, N).
        out: features, (B, N // 1024, channels).
        conditioning_clip: sound of the voice at 22.05 kHz, (B, 1, L), or of several clips (B, n, 1, L).
        text: tokens, (B, T), filled up with 0.
        text_lengths: of texts, (B,).
        input_lengths: samples of sound without what it is filled up with, (B,).
        dvae_name: the autoencoder that makes codes.
        gpt_name: the autoregressive model, a `unified_voice2`.
        mel_norm_file: divisors of bins that both were trained with; see `torch_mel_spectrogram`.
        conditioning_length: to so many samples clips are cut, or filled up.

    Raises:
        DataError: `mel_norm_file` is missing or holds something else.
    """

    detaches = True

    def __init__(
        self,
        *,
        in_: StateIn,
        out: StateOut,
        conditioning_clip: StateIn,
        text: StateIn,
        text_lengths: StateIn,
        input_lengths: StateIn,
        dvae_name: NetworkName = "dvae",
        gpt_name: NetworkName = "gpt",
        mel_norm_file: str | None = None,
        conditioning_length: PositiveInt = 132300,
    ) -> None:
        self.input, self.out, self.clip = in_, out, conditioning_clip
        self.text, self.text_lengths, self.lengths = text, text_lengths, input_lengths
        self.dvae, self.gpt = dvae_name, gpt_name
        self.clip_length = conditioning_length
        self.spectrogram = TorchMelSpectrogramInjector(in_="sound", out="mel", mel_norm_file=mel_norm_file)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        sound, clips = state[self.input], state[self.clip]
        gpt: Any = context.network(self.gpt)
        codes = codes_of(context.network(self.dvae), self.dvae, self._mel(sound, context))
        codes = codes[:, : sound.shape[-1] // gpt.compression]
        clips = clips[:, None] if clips.dim() == 3 else clips
        clips = F.pad(clips[..., : self.clip_length], (0, max(0, self.clip_length - clips.shape[-1])))
        mels = self._mel(clips.flatten(0, 1), context).unflatten(0, clips.shape[:2])
        with torch.no_grad(), evaluation_mode(gpt):
            lengths = (state[self.text_lengths], codes, state[self.lengths])
            return {self.out: gpt(mels, state[self.text], *lengths, return_latent=True, clip_inputs=False)}

    def _mel(self, sound: Tensor, context: Context) -> Tensor:
        return self.spectrogram({"sound": sound}, context)["mel"]


@INJECTORS.register("conditioning_latent_distribution_divergence")
class LatentDivergenceInjector(Injector):
    """How far latents of voices that a network draws are from real ones in the moments of a batch.

    Args:
        in_: drawn latents, (B, channels).
        out: mean squared difference of the channels' means over the batch.
        var_loss: that of their variances.
        conditioning_clip: spectrograms of real clips, (B, bins, T), or of several for each voice (B, n, bins, T).
        generator: the network that makes latents of clips by its method `conditioning`: `unified_voice2`, or
            `diffusion_tts_flat`. It is a network of this file (in DL-Art-School of another: `gpt_config`, `gpt_path`,
            `diffusion_path`) and is not trained by the step.

    Raises:
        TrainingError: a micro-batch of one sample has no variance.
    """

    def __init__(
        self, *, in_: StateIn, out: StateOut, var_loss: StateOut, conditioning_clip: StateIn, generator: NetworkName
    ) -> None:
        self.input, self.out, self.out_variance = in_, out, var_loss
        self.clip, self.network = conditioning_clip, generator

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        network: Any = context.network(self.network)
        with torch.no_grad(), evaluation_mode(network):
            real = network.conditioning(state[self.clip]).float()
        drawn = state[self.input].float()
        if len(drawn) < 2:
            raise TrainingError("the variance of latents needs two samples in a micro-batch; raise batch_size, or cut less")
        return {
            self.out: F.mse_loss(drawn.mean(0), real.mean(0)),
            self.out_variance: F.mse_loss(drawn.var(0), real.var(0)),
        }
