"""The diffusion decoder of TorToiSe: codes of speech, or features of the autoregressive model, as a spectrogram.

Betker, "Better speech synthesis through scaling", 2023 (arXiv:2305.07243), section 3.4: a flat stack of residual blocks and
attention that reads the noisy spectrogram beside the aligned condition. A learned variance: Nichol et al. 2021
(arXiv:2102.09672); guidance without a classifier: Ho et al. 2022 (arXiv:2207.12598).
TorToiSe's ``diffusion_decoder.pth`` loads.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.group_norm import GroupNorm
from dlas.layers.recompute import recompute
from dlas.layers.sequence_attention import SequenceAttention
from dlas.layers.time_embedding import timestep_embedding
from dlas.layers.zeroed import zeroed
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

TIME_LAYERS = 3
"""Layers that tell the condition of the time."""

LAST_BLOCKS = 3
"""Residual blocks without attention at the end."""


class ResidualBlock(nn.Module):
    """Two convolutions, between which the time sets scale and shift.

    Args:
        channels: of input, output and time.
        dropout: before the second convolution.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(channels, "dlas"), nn.SiLU(), nn.Conv1d(channels, channels, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(channels, 2 * channels))
        last = nn.Conv1d(channels, channels, 3, padding=1)
        self.out_layers = nn.Sequential(GroupNorm(channels, "dlas"), nn.SiLU(), nn.Dropout(dropout), zeroed(last))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, channels, T), (B, channels) -> (B, channels, T)."""
        scale, shift = self.emb_layers(time)[..., None].chunk(2, dim=1)
        norm, *rest = self.out_layers
        features = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            features = layer(features)
        return x + features


class DiffusionLayer(nn.Module):
    """A residual block and attention with a bias for distances."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.resblk = ResidualBlock(channels, dropout)
        self.attn = SequenceAttention(channels, heads, relative=True)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, channels, T), (B, channels) -> (B, channels, T)."""
        return self.attn(self.resblk(x, time))


@ARCHS.register("diffusion_tts_flat")
class DiffusionTTS(nn.Module):
    """Predicts the noise in a spectrogram, and its variance.

    Train it with `gaussian_diffusion` and `model_input_keys: {aligned_conditioning: codes, conditioning_input: clip_mel}`. The
    published weights have `model_channels: 1024, num_layers: 10, in_latent_channels: 1024`.

    Args:
        model_channels: width.
        num_layers: layers of residual block and attention.
        in_channels: of spectrograms.
        in_latent_channels: of the features of the autoregressive model.
        in_tokens: codes of speech.
        out_channels: twice `in_channels` for a learned variance.
        dropout: within residual blocks.
        num_heads: of attention.
        layer_drop: probability with which a layer is left out in training; never the first and the last.
        unconditioned_percentage: share of samples, from 0 to 1, that are trained without a condition, for guidance.
        trained_on: the kind of condition that it is trained with: first `codes`, then `latents` (features of the autoregressive
            model), as TorToiSe was. The layers that read the other kind stay as they are.
    """

    def __init__(
        self,
        *,
        model_channels: PositiveInt = 512,
        num_layers: PositiveInt = 8,
        in_channels: PositiveInt = 100,
        in_latent_channels: PositiveInt = 512,
        in_tokens: PositiveInt = 8193,
        out_channels: PositiveInt = 200,
        dropout: Fraction = 0.0,
        num_heads: PositiveInt = 16,
        layer_drop: Fraction = 0.1,
        unconditioned_percentage: Fraction = 0.1,
        trained_on: Literal["codes", "latents", "both"] = "both",
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.channels, self.layer_drop, self.unconditioned = model_channels, layer_drop, unconditioned_percentage
        width = model_channels

        def attention(channels: int, blocks: int) -> list[nn.Module]:
            return [SequenceAttention(channels, num_heads, relative=True) for _ in range(blocks)]

        self.inp_block = nn.Conv1d(in_channels, width, 3, padding=1)
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.code_embedding = nn.Embedding(in_tokens, width)
        self.code_converter = nn.Sequential(*attention(width, 3))
        self.code_norm = GroupNorm(width, "dlas")
        self.latent_conditioner = nn.Sequential(nn.Conv1d(in_latent_channels, width, 3, padding=1), *attention(width, 4))
        self.contextual_embedder = nn.Sequential(
            nn.Conv1d(in_channels, width, 3, stride=2, padding=1),
            nn.Conv1d(width, 2 * width, 3, stride=2, padding=1),
            *attention(2 * width, 5),
        )
        self.unconditioned_embedding = nn.Parameter(torch.randn(1, width, 1))
        self.conditioning_timestep_integrator = nn.ModuleList(
            DiffusionLayer(width, num_heads, dropout) for _ in range(TIME_LAYERS)
        )
        self.integrating_conv = nn.Conv1d(2 * width, width, 1)
        self.mel_head = nn.Conv1d(width, in_channels, 3, padding=1)
        layers: list[nn.Module] = [DiffusionLayer(width, num_heads, dropout) for _ in range(num_layers)]
        self.layers = nn.ModuleList([*layers, *(ResidualBlock(width, dropout) for _ in range(LAST_BLOCKS))])
        last = zeroed(nn.Conv1d(width, out_channels, 3, padding=1))
        self.out = nn.Sequential(GroupNorm(width, "dlas"), nn.SiLU(), last)
        if trained_on == "codes":
            self.latent_conditioner.requires_grad_(False)
        elif trained_on == "latents":
            self.code_embedding.requires_grad_(False)
            self.code_converter.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        aligned_conditioning: Tensor | None = None,
        conditioning_input: Tensor | None = None,
        precomputed_aligned_embeddings: Tensor | None = None,
        conditioning_free: bool = False,
        return_code_pred: bool = False,
    ) -> Any:
        """Predicts.

        Args:
            x: noisy spectrograms (B, in_channels, T), about within [-1, 1].
            timesteps: (B,).
            aligned_conditioning: codes (B, S), whole numbers, or features (B, S, in_latent_channels).
            conditioning_input: the voice: spectrograms of clips (B, in_channels, L) or (B, clips, in_channels, L), not
                normalised; or what `conditioning` made of them, (B, 2 model_channels).
            precomputed_aligned_embeddings: what `timestep_independent` made of the two, (B, model_channels, T), in their place.
            conditioning_free: without any condition, for guidance.
            return_code_pred: also predict the spectrogram from the condition alone.

        Returns:
            (B, out_channels, T): noise, then variance. With `return_code_pred` also (B, in_channels, T), zeros where a sample
            was trained without its condition.

        Raises:
            ValueError: no condition is given, or two.
        """
        code_prediction: Tensor | None = None
        if conditioning_free:
            condition = self.unconditioned_embedding.expand(len(x), -1, x.shape[-1])
        elif precomputed_aligned_embeddings is not None:
            if aligned_conditioning is not None or conditioning_input is not None:
                raise ValueError(
                    "give precomputed_aligned_embeddings, or aligned_conditioning and conditioning_input, not both"
                )
            condition = precomputed_aligned_embeddings
        elif aligned_conditioning is None or conditioning_input is None:
            raise ValueError("aligned_conditioning and conditioning_input are needed, except with conditioning_free")
        else:
            condition, conditioned = self._condition(aligned_conditioning, conditioning_input, x.shape[-1])
            if return_code_pred:
                code_prediction = self.mel_head(condition) * conditioned
        time = self.embed_time(timesteps)
        features = self.integrating_conv(torch.cat((self.inp_block(x), self.integrate_time(condition, time)), dim=1))
        dropped = torch.rand(len(self.layers)) < self.layer_drop if self.training and self.layer_drop else None
        for index, layer in enumerate(self.layers):
            if dropped is not None and 0 < index < len(self.layers) - 1 and dropped[index]:
                continue
            features = recompute(layer, features, time, when=self.checkpointing and self.training, random=True)
        predicted = self.out(features)
        if not return_code_pred:
            return predicted
        return predicted, self.mel_head(condition) if code_prediction is None else code_prediction

    def embed_time(self, timesteps: Tensor) -> Tensor:
        """Times (B,) -> (B, model_channels), in the type of the weights."""
        with torch.autocast(timesteps.device.type, enabled=False):
            return self.time_embed(timestep_embedding(timesteps, self.channels).to(self.inp_block.weight.dtype))

    def integrate_time(self, condition: Tensor, time: Tensor) -> Tensor:
        """Tells the condition (B, model_channels, T) of the time (B, model_channels)."""
        for layer in self.conditioning_timestep_integrator:
            condition = recompute(layer, condition, time, when=self.checkpointing and self.training, random=True)
        return condition

    def conditioning(self, clips: Tensor) -> Tensor:
        """The voice of clips: spectrograms (B, in_channels, L) or (B, clips, in_channels, L) -> (B, 2 model_channels)."""
        clips = clips[:, None] if clips.ndim == 3 else clips
        each = self.contextual_embedder(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        return each.mean((1, 3))  # clips are of one length: the mean of means is that of all frames

    def timestep_independent(self, aligned_conditioning: Tensor, conditioning_input: Tensor, frames: int) -> Tensor:
        """What does not depend on the time: (B, model_channels, frames); arguments as of `forward`."""
        return self._condition(aligned_conditioning, conditioning_input, frames)[0]

    def _condition(self, aligned: Tensor, voice: Tensor, frames: int) -> tuple[Tensor, Tensor | float]:
        """The condition for each frame, and 1 for samples that have it and 0 for others, (B, 1, 1)."""
        voice = voice if voice.ndim == 2 else self.conditioning(voice)
        scale, shift = voice[..., None].chunk(2, dim=1)
        if aligned.is_floating_point():
            embedded = self.latent_conditioner(aligned.transpose(1, 2))
        else:
            embedded = self.code_converter(self.code_embedding(aligned).transpose(1, 2))
        embedded = self.code_norm(embedded) * (1 + scale) + shift
        if not self.training:
            return F.interpolate(embedded, size=frames, mode="nearest"), 1.0
        without = torch.rand((len(embedded), 1, 1), device=embedded.device) < self.unconditioned
        embedded = self.without_condition(embedded, without)
        return F.interpolate(embedded, size=frames, mode="nearest"), (~without).to(embedded.dtype)

    def without_condition(self, embedded: Tensor, chosen: Tensor) -> Tensor:
        """Takes the condition (B, model_channels, S) from the samples that are chosen, (B, 1, 1) bool."""
        return torch.where(chosen, self.unconditioned_embedding.to(embedded.dtype), embedded)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"model_channels": 8, "num_layers": 1, "in_channels": 4, "in_latent_channels": 6, "in_tokens": 9}
        more = {"out_channels": 8, "num_heads": 2, "layer_drop": 0.0, "trained_on": "codes"}
        codes, clips = torch.randint(9, (2, 3)), torch.randn(2, 2, 4, 9)
        return options | more, (torch.randn(2, 4, 10), torch.tensor([3, 700]), codes, clips, None, False, True)
