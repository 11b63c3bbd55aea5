"""CVVP: which speech is of the voice of a clip.

TorToiSe's second ranking model, whose ``cvvp.pth`` loads: contrastive, after CLIP (Radford et al. 2021, arXiv:2103.00020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlas.layers.contrastive import contrastive_loss, pair_similarity
from dlas.layers.rotary_transformer import RotaryTransformer, keep_some, masked_mean
from dlas.layers.sequence_attention import SequenceAttention
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt


class CollapsingTransformer(nn.Module):
    """A sequence as one vector: a transformer, two projections with attention in between, and the mean over positions."""

    def __init__(self, channels: int, out_channels: int, depth: int, heads: int, dropout: float, hidden: float) -> None:
        super().__init__()
        self.hidden = hidden
        self.transformer = RotaryTransformer(channels, depth, heads, ff_mult=1, dropout=dropout)
        self.pre_combiner = nn.Sequential(
            nn.Conv1d(channels, out_channels, 1),
            SequenceAttention(out_channels, heads),
            nn.Conv1d(out_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> (B, out_channels)."""
        keep = keep_some((len(x), x.shape[1]), self.hidden, x.device) if self.training and self.hidden else None
        encoded = self.transformer(x, keep).transpose(1, 2)
        return masked_mean(self.pre_combiner(encoded).transpose(1, 2), keep)


class Codes(nn.Module):
    """An embedding under the name ``emb``."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(codes, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) -> (B, T, channels)."""
        return self.emb(x)


@ARCHS.register("cvvp")
class CVVP(nn.Module):
    """Spectrograms of clips and speech as vectors that are alike where the voice is the same.

    The defaults are those of DL-Art-School; the published weights have 8192 `mel_codes`.

    Args:
        model_dim: width.
        transformer_heads: of attention, 64 channels each.
        dropout: of attention and feed-forward layers.
        conditioning_enc_depth: layers of the clips' encoder.
        cond_mask_percentage: share of a clip's frames (of four spectrogram frames each) that are hidden in training, 0 to 1.
        mel_channels: of spectrograms.
        mel_codes: how many codes of speech there are; None: speech is given as spectrograms, too.
        speech_enc_depth: layers of the speech's encoder.
        speech_mask_percentage: share of the speech's frames that are hidden in training.
        latent_multiplier: channels of the vectors that are compared, in `model_dim`.
    """

    brings_together = True

    def __init__(
        self,
        *,
        model_dim: PositiveInt = 512,
        transformer_heads: PositiveInt = 8,
        dropout: Fraction = 0.1,
        conditioning_enc_depth: PositiveInt = 8,
        cond_mask_percentage: Fraction = 0.0,
        mel_channels: PositiveInt = 80,
        mel_codes: PositiveInt | None = None,
        speech_enc_depth: PositiveInt = 8,
        speech_mask_percentage: Fraction = 0.0,
        latent_multiplier: PositiveInt = 1,
    ) -> None:
        super().__init__()
        latents = latent_multiplier * model_dim
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.cond_emb = _reduced(mel_channels, model_dim)
        self.conditioning_transformer = CollapsingTransformer(
            model_dim, latents, conditioning_enc_depth, transformer_heads, dropout, cond_mask_percentage
        )
        self.to_conditioning_latent = nn.Linear(latents, latents, bias=False)
        self.reads_codes = mel_codes is not None
        self.speech_emb = _reduced(mel_channels, model_dim) if mel_codes is None else Codes(mel_codes, model_dim)
        self.speech_transformer = CollapsingTransformer(
            model_dim, latents, speech_enc_depth, transformer_heads, dropout, speech_mask_percentage
        )
        self.to_speech_latent = nn.Linear(latents, latents, bias=False)

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return self.speech_transformer.transformer.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for encoder in (self.conditioning_transformer, self.speech_transformer):
            encoder.transformer.checkpointing = on

    def forward(self, mel_cond: Tensor, mel_input: Tensor, return_loss: bool = False) -> Tensor:
        """Compares clips with speech, row by row, or all with all.

        Args:
            mel_cond: spectrograms of clips, (B, mel_channels, T).
            mel_input: codes (B, S), or without `mel_codes` spectrograms (B, mel_channels, S).
            return_loss: the contrastive loss over the batch (in training of all processes) instead.

        Returns:
            How alike each pair is, (B,); with `return_loss` a scalar in float32.
        """
        latents, partners = self.conditioning_latents(mel_cond), self.speech_latents(mel_input)
        return (contrastive_loss if return_loss else pair_similarity)(latents, partners, self.temperature)

    def conditioning_latents(self, mel: Tensor) -> Tensor:
        """Vectors of clips: (B, mel_channels, T) -> (B, channels), of any length."""
        return self.to_conditioning_latent(self.conditioning_transformer(self.cond_emb(mel).transpose(1, 2)))

    def speech_latents(self, speech: Tensor) -> Tensor:
        """Vectors of speech: codes (B, S) or spectrograms (B, mel_channels, S) -> (B, channels), of any length."""
        embedded = self.speech_emb(speech)
        return self.to_speech_latent(self.speech_transformer(embedded if self.reads_codes else embedded.transpose(1, 2)))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options: dict[str, Any] = {"model_dim": 8, "transformer_heads": 1, "conditioning_enc_depth": 1, "speech_enc_depth": 1}
        options |= {"mel_channels": 4, "mel_codes": 12, "cond_mask_percentage": 0.2}
        return options, (torch.randn(3, 4, 18), torch.randint(12, (3, 7)), True)


def _reduced(mel_channels: int, channels: int) -> nn.Sequential:
    """Four frames of a spectrogram as one."""
    return nn.Sequential(
        nn.Conv1d(mel_channels, channels // 2, 5, stride=2, padding=2),
        nn.Conv1d(channels // 2, channels, 3, stride=2, padding=1),
    )
