"""CLVP: which speech belongs to which text.

Betker, "Better speech synthesis through scaling", 2023 (arXiv:2305.07243), section 3.3: a contrastive model of texts and
of codes of speech, after CLIP (Radford et al. 2021, arXiv:2103.00020). TorToiSe's ``clvp2.pth`` loads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlas.layers.contrastive import contrastive_loss, pair_similarity
from dlas.layers.rotary_transformer import RotaryTransformer, keep_some, masked_mean
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt


class Encoder(nn.Module):
    """One level of names around a transformer."""

    def __init__(self, transformer: RotaryTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """That of the transformer."""
        return self.transformer(x, keep)


@ARCHS.register("clvp2", "voice_clip")
class CLVP2(nn.Module):
    """Texts and codes of speech as vectors that are alike where they belong together; the defaults are the published ones.

    Train it with `direct` of its loss: `{type: generator, generator: clvp, in: [padded_text, codes, true], out: loss}`.

    Args:
        dim_text: width of the text's encoder.
        dim_speech: width of the speech's encoder.
        dim_latent: channels of the vectors that are compared.
        num_text_tokens: size of the text's vocabulary.
        text_enc_depth: layers of the text's encoder.
        text_heads: of its attention, 64 channels each.
        num_speech_tokens: how many codes of speech there are.
        speech_enc_depth: layers of the speech's encoder.
        speech_heads: of its attention.
        text_mask_percentage: share of the tokens of a text that are hidden in training, from 0 to 1.
        voice_mask_percentage: share of the codes of speech that are hidden in training.
        dropout: of attention and feed-forward layers.
    """

    brings_together = True

    def __init__(
        self,
        *,
        dim_text: PositiveInt = 768,
        dim_speech: PositiveInt = 768,
        dim_latent: PositiveInt = 768,
        num_text_tokens: PositiveInt = 256,
        text_enc_depth: PositiveInt = 20,
        text_heads: PositiveInt = 12,
        num_speech_tokens: PositiveInt = 8192,
        speech_enc_depth: PositiveInt = 20,
        speech_heads: PositiveInt = 12,
        text_mask_percentage: Fraction = 0.0,
        voice_mask_percentage: Fraction = 0.0,
        dropout: Fraction = 0.1,
    ) -> None:
        super().__init__()
        self.text_mask, self.voice_mask = text_mask_percentage, voice_mask_percentage
        self.text_emb = nn.Embedding(num_text_tokens, dim_text)
        self.to_text_latent = nn.Linear(dim_text, dim_latent, bias=False)
        self.speech_emb = nn.Embedding(num_speech_tokens, dim_speech)
        self.to_speech_latent = nn.Linear(dim_speech, dim_latent, bias=False)
        options: dict[str, Any] = {"ff_mult": 2, "dropout": dropout, "wrapped": True}
        self.text_transformer = Encoder(RotaryTransformer(dim_text, text_enc_depth, text_heads, **options))
        self.speech_transformer = Encoder(RotaryTransformer(dim_speech, speech_enc_depth, speech_heads, **options))
        self.temperature = nn.Parameter(torch.tensor(1.0))

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return self.text_transformer.transformer.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.text_transformer.transformer.checkpointing = self.speech_transformer.transformer.checkpointing = on

    def forward(self, text: Tensor, speech_tokens: Tensor, return_loss: bool = False) -> Tensor:
        """Compares texts with speech, row by row, or all with all.

        Args:
            text: (B, T), tokens.
            speech_tokens: (B, S), codes.
            return_loss: the contrastive loss over the batch (in training of all processes) instead.

        Returns:
            How alike each pair is, (B,); with `return_loss` a scalar in float32.
        """
        latents = self.text_latents(text, self._keep(text, self.text_mask))
        partners = self.speech_latents(speech_tokens, self._keep(speech_tokens, self.voice_mask))
        return (contrastive_loss if return_loss else pair_similarity)(latents, partners, self.temperature)

    def text_latents(self, text: Tensor, keep: Tensor | None = None) -> Tensor:
        """Vectors of texts (B, T): (B, dim_latent), of any length. `keep`, (B, T) bool: the tokens that are seen."""
        return self.to_text_latent(masked_mean(self.text_transformer(self.text_emb(text), keep), keep))

    def speech_latents(self, codes: Tensor, keep: Tensor | None = None) -> Tensor:
        """Vectors of codes (B, S): (B, dim_latent), of any length. `keep`, (B, S) bool: the codes that are seen."""
        return self.to_speech_latent(masked_mean(self.speech_transformer(self.speech_emb(codes), keep), keep))

    def _keep(self, tokens: Tensor, hidden: float) -> Tensor | None:
        return keep_some((len(tokens), tokens.shape[1]), hidden, tokens.device) if self.training and hidden else None

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options: dict[str, Any] = {
            "dim_text": 8,
            "dim_speech": 8,
            "dim_latent": 8,
            "num_text_tokens": 9,
            "num_speech_tokens": 12,
        }
        options |= {
            "text_enc_depth": 1,
            "speech_enc_depth": 1,
            "text_heads": 1,
            "speech_heads": 1,
            "voice_mask_percentage": 0.2,
        }
        return options, (torch.randint(9, (3, 5)), torch.randint(12, (3, 7)), True)
