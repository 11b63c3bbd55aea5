"""The autoregressive model of TorToiSe: text and a voice in, codes of speech out.

Betker, "Better speech synthesis through scaling", 2023 (arXiv:2305.07243), section 3.2: GPT-2 over [voice, text, codes], where
text and codes have their own embeddings, positions and heads. GPT-2: Radford et al. 2019.
TorToiSe's ``autoregressive.pth`` loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.gpt2 import GPT2, INIT_STD
from dlas.layers.sequence_attention import SequenceAttention
from dlas.layers.token_sampling import TokenSampling
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

STOP_TEXT = 0

CONDITIONING_BLOCKS = 6

Positions = Literal["trained", "published_cache"]
"""Of generated codes. trained: 0, 1, 2 ...; published_cache: 0, 2, 3, 4 ..., as in TorToiSe's own cached decoding."""


class ConditioningEncoder(nn.Module):
    """A clip's spectrogram as one vector: attention over its frames, of which the first is the result.

    Args:
        mel_channels: of the spectrogram.
        channels: of the vector.
        heads: of attention.
        residual_normed: see `SequenceAttention`.
    """

    def __init__(self, mel_channels: int, channels: int, heads: int, residual_normed: bool) -> None:
        super().__init__()
        self.init = nn.Conv1d(mel_channels, channels, 1)
        self.attn = nn.Sequential(
            *(SequenceAttention(channels, heads, residual_normed=residual_normed) for _ in range(CONDITIONING_BLOCKS))
        )

    def forward(self, mel: Tensor) -> Tensor:
        """(B, mel_channels, T) -> (B, channels)."""
        return self.attn(self.init(mel))[:, :, 0]


class LearnedPositions(nn.Module):
    """A vector for each position."""

    def __init__(self, positions: int, channels: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(positions, channels)
        nn.init.normal_(self.emb.weight, std=INIT_STD)

    def forward(self, length: int) -> Tensor:
        """Those of the first positions, (length, channels).

        Raises:
            ValueError: there are fewer.
        """
        most = self.emb.num_embeddings
        if length > most:
            raise ValueError(
                f"a sequence of {length} tokens, start and stop included, is longer than the {most} positions of the network: "
                "shorten it, or raise max_text_tokens or max_mel_tokens"
            )
        return self.emb.weight[:length]


@ARCHS.register("unified_voice2")
class UnifiedVoice(nn.Module):
    """Predicts texts and codes of speech, token by token.

    Train it with `direct` of the first two outputs, in TorToiSe with weights 0.01 and 1: `{type: generator, generator: gpt,
    in: [conditioning_mel, padded_text, text_lengths, codes, wav_lengths], out: [text_loss, mel_loss, logits]}`.

    Args:
        layers: blocks of GPT-2.
        model_dim: width.
        heads: of attention.
        max_text_tokens: length of the longest text.
        max_mel_tokens: of the longest sequence of codes.
        max_conditioning_inputs: clips of a voice, if each is its own input.
        mel_length_compression: samples of audio for one code.
        number_text_tokens: size of the text's vocabulary, without the start token.
        start_text_token: id of what begins a text; by default the first that is free.
        number_mel_codes: codes of speech, start and stop included.
        start_mel_token: id of what begins a sequence of codes.
        stop_mel_token: id of what ends it.
        train_solo_embeddings: texts and speech that come alone begin with a learned vector.
        types: kinds of text, each with a vocabulary of its own.
        mel_channels: of the spectrograms of clips.
        dropout: within GPT-2, in training.
        average_conditioning_embeddings: the clips of a voice are one input, their mean, as TorToiSe speaks; otherwise each
            is an input, as DL-Art-School trains, and text's logits are read as many places too early as there are more clips.
        conditioning_residual_normed: blocks of the clips' encoder add to their normalised input, as in DL-Art-School after
            June 2022, not to the input itself as in TorToiSe's published weights.
        checkpointing: compute layers again in the backward pass, whatever `checkpointing_enabled` says.
    """

    def __init__(
        self,
        *,
        layers: PositiveInt = 8,
        model_dim: PositiveInt = 512,
        heads: PositiveInt = 8,
        max_text_tokens: PositiveInt = 120,
        max_mel_tokens: PositiveInt = 250,
        max_conditioning_inputs: PositiveInt = 1,
        mel_length_compression: PositiveInt = 1024,
        number_text_tokens: PositiveInt = 256,
        start_text_token: PositiveInt | None = None,
        number_mel_codes: PositiveInt = 8194,
        start_mel_token: PositiveInt = 8192,
        stop_mel_token: PositiveInt = 8193,
        train_solo_embeddings: bool = False,
        types: PositiveInt = 1,
        mel_channels: PositiveInt = 80,
        dropout: Fraction = 0.1,
        average_conditioning_embeddings: bool = True,
        conditioning_residual_normed: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        vocabulary = number_text_tokens * types + 1
        self.start_text = number_text_tokens * types if start_text_token is None else start_text_token
        for name, token, most in (
            ("start_text_token", self.start_text, vocabulary),
            ("start_mel_token", start_mel_token, number_mel_codes),
            ("stop_mel_token", stop_mel_token, number_mel_codes),
        ):
            if token >= most:
                raise ValueError(f"{name} is {token}, and there are {most} tokens: 0 to {most - 1}")
        self.start_mel, self.stop_mel = start_mel_token, stop_mel_token
        self.compression = mel_length_compression
        self.max_mel_tokens = max_mel_tokens
        self.average_conditioning = average_conditioning_embeddings
        self.conditioning_encoder = ConditioningEncoder(mel_channels, model_dim, heads, conditioning_residual_normed)
        self.text_embedding = nn.Embedding(vocabulary, model_dim)
        self.mel_embedding = nn.Embedding(number_mel_codes, model_dim)
        for embedding in (self.text_embedding, self.mel_embedding):
            nn.init.normal_(embedding.weight, std=INIT_STD)
        self.gpt = GPT2(model_dim, layers, heads, dropout)
        self.mel_pos_embedding = LearnedPositions(max_mel_tokens + 2 + max_conditioning_inputs, model_dim)
        self.text_pos_embedding = LearnedPositions(max_text_tokens + 2, model_dim)
        if train_solo_embeddings:
            self.mel_solo_embedding = nn.Parameter(torch.randn(1, 1, model_dim) * INIT_STD)
            self.text_solo_embedding = nn.Parameter(torch.randn(1, 1, model_dim) * INIT_STD)
        self.final_norm = nn.LayerNorm(model_dim)
        self.text_head = nn.Linear(model_dim, vocabulary)
        self.mel_head = nn.Linear(model_dim, number_mel_codes)
        self.checkpointing = checkpointing

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return self.gpt.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.gpt.checkpointing = on

    @staticmethod
    def rename_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leaves out what holds nothing of its own.

        Causal masks, which older versions of transformers wrote into checkpoints, and the second names that weights have in
        tortoise-tts once it is ready to speak.
        """
        return {
            key: value
            for key, value in state_dict.items()
            if not key.endswith((".attn.bias", ".attn.masked_bias", "gpt.wte.weight"))
            and not key.startswith("inference_model.")
        }

    def conditioning(self, clips: Tensor) -> Tensor:
        """The voice of clips.

        Args:
            clips: spectrograms (B, mel_channels, T), or of several clips of a voice (B, clips, mel_channels, T).

        Returns:
            (B, model_dim): the mean over a voice's clips.
        """
        return self._each_clip(clips).mean(1)

    def _each_clip(self, clips: Tensor) -> Tensor:
        """(B, clips, model_dim)."""
        clips = clips[:, None] if clips.ndim == 3 else clips
        return self.conditioning_encoder(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])

    def forward(
        self,
        speech_conditioning_input: Tensor,
        text_inputs: Tensor,
        text_lengths: Tensor,
        mel_codes: Tensor,
        wav_lengths: Tensor,
        text_first: bool = True,
        types: Tensor | None = None,
        return_latent: bool = False,
        clip_inputs: bool = True,
    ) -> Any:
        """Cross-entropies of the next token, over all positions, padding included, as TorToiSe was trained.

        Args:
            speech_conditioning_input: spectrograms of clips (B, mel_channels, T) or (B, clips, mel_channels, T), or what
                `conditioning` made of them, (B, model_dim).
            text_inputs: (B, T), padded with 0.
            text_lengths: (B,).
            mel_codes: (B, S), padded with anything.
            wav_lengths: samples of audio, (B,).
            text_first: text comes before codes.
            types: kind of each text, (B,).
            return_latent: the features of codes instead: what the decoder by diffusion reads.
            clip_inputs: cut texts and codes to the longest of the batch. Needs the lengths on the CPU: batches that are no
                longer than their longest item are better given without.

        Returns:
            The loss of the text, that of the codes, and logits (B, number_mel_codes, S + 1). With `return_latent`, features
            (B, S, model_dim).

        Raises:
            ValueError: a sequence is longer than the network's positions.
        """
        if types is not None:
            text_inputs = text_inputs * (1 + types[:, None])
        if clip_inputs:
            text_inputs = text_inputs[:, : int(text_lengths.max())]
            mel_codes = mel_codes[:, : int(wav_lengths.max()) // self.compression]
        prefix = self._prefix(speech_conditioning_input)
        text, text_targets = self._text(text_inputs)
        speech, speech_targets = self._speech(self._padded(mel_codes, wav_lengths))
        parts = (text, speech) if text_first else (speech, text)
        features = self.final_norm(self.gpt(torch.cat((prefix, *parts), dim=1))[:, 1:])
        first, last = features[:, : parts[0].shape[1]], features[:, -parts[1].shape[1] :]
        of_text, of_speech = (first, last) if text_first else (last, first)
        if return_latent:
            return of_speech[:, :-2]
        logits = self.mel_head(of_speech).mT
        text_loss = F.cross_entropy(self.text_head(of_text).mT.float(), text_targets)
        return text_loss, F.cross_entropy(logits.float(), speech_targets), logits

    def text_loss(self, speech_conditioning_input: Tensor, text_inputs: Tensor, text_lengths: Tensor) -> Tensor:
        """Loss of texts that come without speech; arguments as of `forward`."""
        text, targets = self._text(text_inputs[:, : int(text_lengths.max())])
        text = text + getattr(self, "text_solo_embedding", 0.0)
        features = self._after_one(speech_conditioning_input, text)
        return F.cross_entropy(self.text_head(features).mT.float(), targets)

    def speech_loss(self, speech_conditioning_input: Tensor, mel_codes: Tensor, wav_lengths: Tensor) -> Tensor:
        """Loss of speech that comes without a text; arguments as of `forward`."""
        codes = self._padded(mel_codes[:, : int(wav_lengths.max()) // self.compression], wav_lengths)
        speech, targets = self._speech(codes)
        speech = speech + getattr(self, "mel_solo_embedding", 0.0)
        features = self._after_one(speech_conditioning_input, speech)
        return F.cross_entropy(self.mel_head(features).mT.float(), targets)

    def _after_one(self, speech_conditioning_input: Tensor, embedded: Tensor) -> Tensor:
        found = self.gpt(torch.cat((self._prefix(speech_conditioning_input), embedded), dim=1))
        return self.final_norm(found[:, 1 : embedded.shape[1] + 1])

    @torch.inference_mode()
    def generate(
        self,
        voice: Tensor,
        text: Tensor,
        uniforms: Tensor,
        sampling: TokenSampling | None = None,
        *,
        prefix: Tensor | None = None,
        positions: Positions = "trained",
    ) -> Tensor:
        """Speaks: codes until the stop token, with a cache of what attention has seen.

        Args:
            voice: what `conditioning` made of clips, (1, model_dim).
            text: (1, T), tokens, without start and stop.
            uniforms: (N, L), in [0, 1): what each of N candidates draws its L codes by.
            sampling: how; None: `TokenSampling()`.
            prefix: codes that every candidate begins with, (1, P).
            positions: see `Positions`.

        Returns:
            (N, L), int64: codes, and from the stop token on nothing but stop tokens.

        Raises:
            ValueError: more codes are asked for than the network has positions.
        """
        sampling = sampling or TokenSampling()
        candidates, length = uniforms.shape
        start = torch.full((1, 1), self.start_mel, device=text.device)
        given = start if prefix is None else torch.cat((start, prefix), dim=1)
        embedded, _ = self._text(text)
        begun = self.mel_embedding(given) + self.mel_pos_embedding(given.shape[1])
        table = self.mel_pos_embedding(length + (2 if positions == "published_cache" else 1))
        inputs = torch.cat((voice[:, None], embedded, begun), dim=1)
        past = self.gpt.cache(1, inputs.shape[1] + length, inputs)
        logits = self._mel_logits(self.gpt(inputs, past)[:, -1:]).expand(candidates, -1)
        past.expand(candidates)
        # As in Hugging Face's `generate` with embedded prompts, whose tokens are 1s: the code 1 and the start have occurred.
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[:, torch.cat((torch.ones_like(start), given), dim=1)] = True
        codes = torch.full((candidates, length), self.stop_mel, device=text.device)
        codes[:, : given.shape[1] - 1] = given[:, 1:]
        done = torch.zeros(candidates, dtype=torch.bool, device=text.device)
        for place in range(given.shape[1] - 1, length):
            drawn = sampling.draw(logits, uniforms[:, place], seen)
            codes[:, place] = torch.where(done, self.stop_mel, drawn)
            done |= drawn == self.stop_mel
            if place + 1 == length or bool(done.all()):
                break
            seen.scatter_(1, codes[:, place, None], True)
            position = place + (2 if positions == "published_cache" else 1)
            embedded = self.mel_embedding(codes[:, place, None]) + table[position]
            logits = self._mel_logits(self.gpt(embedded, past))
        return codes

    def _mel_logits(self, features: Tensor) -> Tensor:
        """Of the last position: (B, T, model_dim) -> (B, number_mel_codes)."""
        return self.mel_head(self.final_norm(features[:, -1]))

    def _prefix(self, given: Tensor) -> Tensor:
        """What the sequence begins with, (B, 1 or clips, model_dim)."""
        if given.ndim == 2:
            return given[:, None]
        each = self._each_clip(given)
        return each.mean(1, keepdim=True) if self.average_conditioning else each

    def _text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded inputs and targets of texts that are stopped once, for being padded, and once more as targets."""
        inputs = F.pad(F.pad(tokens, (0, 1), value=STOP_TEXT), (1, 0), value=self.start_text)
        targets = F.pad(inputs[:, 1:], (0, 1), value=STOP_TEXT)
        return self.text_embedding(inputs) + self.text_pos_embedding(inputs.shape[1]), targets

    def _speech(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        inputs = F.pad(F.pad(codes, (0, 1), value=self.stop_mel), (1, 0), value=self.start_mel)
        targets = F.pad(inputs[:, 1:], (0, 1), value=self.stop_mel)
        return self.mel_embedding(inputs) + self.mel_pos_embedding(inputs.shape[1]), targets

    def _padded(self, codes: Tensor, wav_lengths: Tensor) -> Tensor:
        """Codes with the stop token from one behind the last on."""
        first = wav_lengths[:, None] // self.compression + 1
        place = torch.arange(codes.shape[1], device=codes.device)
        return torch.where(place < first, codes, self.stop_mel)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"layers": 1, "model_dim": 8, "heads": 2, "max_text_tokens": 8, "max_mel_tokens": 8, "number_text_tokens": 10}
        options |= {"number_mel_codes": 12, "start_mel_token": 10, "stop_mel_token": 11, "mel_channels": 4}
        clips, text, codes = torch.randn(2, 4, 6), torch.randint(1, 10, (2, 5)), torch.randint(10, (2, 6))
        return options, (clips, text, torch.tensor([5, 3]), codes, torch.tensor([6 * 1024, 3 * 1024]))
