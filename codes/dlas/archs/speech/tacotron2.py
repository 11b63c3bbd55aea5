"""Tacotron 2: text to a log-mel spectrogram, frame by frame, with attention that moves along the text.

Shen et al., "Natural TTS Synthesis by Conditioning WaveNet on Mel Spectrogram Predictions", ICASSP 2018 (arXiv:1712.05884);
the attention: Chorowski et al., "Attention-Based Models for Speech Recognition", NIPS 2015 (arXiv:1506.07503), section 2.1.
Tensors have the names of NVIDIA's published weights, whose attention LSTM stands before the decoder's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

CONVOLUTION_DROPOUT = 0.5
"""In training, of the encoder's convolutions and the postnet's."""

PRENET_DROPOUT = 0.5
"""Of the frames that are fed back."""

CERTAINLY_LAST = 1e3
"""Logit of the gate beyond the end of a sample."""

STOP_CHECK = 32
"""Frames between looks at whether all samples have ended, each of which waits for the device."""


class _Linear(nn.Module):
    """A linear layer under the name that NVIDIA's have."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(inputs, outputs, bias=bias)
        nn.init.xavier_uniform_(self.linear_layer.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.linear_layer(x)


class _Conv(nn.Module):
    """A convolution that keeps the length, under the name that NVIDIA's have."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)
        nn.init.xavier_uniform_(self.conv.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, T) -> (B, outputs, T)."""
        return self.conv(x)


_TANH = 5 / 3
"""Gains of initial weights, as of `torch.nn.init.calculate_gain`."""
_RELU = math.sqrt(2)


def _stack(widths: Sequence[int], kernel_size: int, gains: Sequence[float]) -> nn.ModuleList:
    """Convolutions with normalisations of batches."""
    return nn.ModuleList(
        nn.Sequential(_Conv(widths[k], widths[k + 1], kernel_size, gain=gain), nn.BatchNorm1d(widths[k + 1]))
        for k, gain in enumerate(gains)
    )


def mask_of(lengths: Tensor, longest: int) -> Tensor:
    """True where a sample has something: (B,) -> (B, longest)."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


class Encoder(nn.Module):
    """Letters, embedded, to features: convolutions and an LSTM in both directions.

    Args:
        width: channels, even.
        convolutions: how many.
        kernel_size: of them.
    """

    def __init__(self, width: int, convolutions: int, kernel_size: int) -> None:
        super().__init__()
        self.convolutions = _stack([width] * (convolutions + 1), kernel_size, [_RELU] * convolutions)
        self.lstm = nn.LSTM(width, width // 2, 1, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Embedded letters (B, T, width), lengths (B,) -> (B, T, width), 0 beyond the lengths."""
        convolved = x.mT
        for layer in self.convolutions:
            convolved = F.dropout(F.relu(layer(convolved)), CONVOLUTION_DROPOUT, self.training)
        x = convolved.mT
        there = torch.arange(x.shape[1], device=x.device)
        # Each sample's own part back to front: the device keeps the lengths, where packing would fetch them.
        turned = torch.where(there < lengths[:, None], lengths[:, None] - 1 - there, there)[..., None].expand_as(x)
        ahead = self._read(x, "")
        back = self._read(x.gather(1, turned), "_reverse")
        back = back.gather(1, turned[..., : back.shape[-1]])
        return torch.cat([ahead, back], -1) * mask_of(lengths, x.shape[1])[..., None]

    def _read(self, x: Tensor, direction: str) -> Tensor:
        weights = [getattr(self.lstm, f"{name}_l0{direction}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        zeros = x.new_zeros(1, len(x), self.lstm.hidden_size)
        return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, self.training, False, True)[0]


class LocationLayer(nn.Module):
    """Features of where attention is and has been.

    Args:
        filters: of the convolution.
        kernel_size: of it.
        width: of the features.
    """

    def __init__(self, filters: int, kernel_size: int, width: int) -> None:
        super().__init__()
        self.location_conv = _Conv(2, filters, kernel_size, bias=False)
        self.location_dense = _Linear(filters, width, gain=_TANH)

    def kernel(self) -> Tensor:
        """Both layers as one convolution, (width, 2, kernel_size)."""
        return torch.einsum("wf,fik->wik", self.location_dense.linear_layer.weight, self.location_conv.conv.weight)


class Attention(nn.Module):
    """Where in the text to look, told by what is being said and by where it has been looked.

    Args:
        query: width of the decoder's state.
        memory: width of the encoder's features.
        width: in which they are compared.
        filters: see `LocationLayer`.
        kernel_size: see there.
    """

    def __init__(self, query: int, memory: int, width: int, filters: int, kernel_size: int) -> None:
        super().__init__()
        self.query_layer = _Linear(query, width, gain=_TANH)
        self.memory_layer = _Linear(memory, width, gain=_TANH)
        self.v = _Linear(width, 1)
        self.location_layer = LocationLayer(filters, kernel_size, width)

    def forward(self, query: Tensor, memory: _Memory, looked: Tensor) -> tuple[Tensor, Tensor]:
        """State (B, query), weights before and their sum (B, 2, T) -> context (B, memory), weights (B, T) in float32."""
        location = F.conv1d(looked.to(memory.kernel.dtype), memory.kernel, padding=memory.kernel.shape[-1] // 2).mT
        energies = self.v(torch.tanh(self.query_layer(query)[:, None] + location + memory.compared))[..., 0]
        weights = energies.float().masked_fill(~memory.there, -torch.inf).softmax(-1)
        return torch.bmm(weights[:, None].to(memory.features.dtype), memory.features)[:, 0], weights


class _Memory(NamedTuple):
    """What attention looks at in every step: features (B, T, memory), these compared, what is there, the location's kernel."""

    features: Tensor
    compared: Tensor
    there: Tensor
    kernel: Tensor


class _States(NamedTuple):
    """Of the decoder between two frames."""

    attention: Tensor
    attention_cell: Tensor
    decoder: Tensor
    decoder_cell: Tensor
    weights: Tensor
    summed: Tensor
    context: Tensor


class Prenet(nn.Module):
    """Narrows frames that are fed back; its dropout stays on, and makes what is said vary.

    Args:
        inputs: bins.
        width: of both layers.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Linear(inputs, width), _Linear(width, width)])

    def forward(self, x: Tensor, drops: bool) -> Tensor:
        """(..., inputs) -> (..., width)."""
        for layer in self.layers:
            x = F.dropout(F.relu(layer(x)), PRENET_DROPOUT, drops)
        return x


class Decoder(nn.Module):
    """Frames from features of a text.

    Args:
        mel: bins of a frame.
        memory: width of the features.
        prenet: width of what is fed back.
        attention_rnn: width of the first LSTM.
        decoder_rnn: width of the second.
        attention: further arguments of `Attention`: width, filters, kernel size.
        dropouts: of the states of both LSTMs, in training.
        prenet_drops: the prenet's dropout is on in evaluation, too.
    """

    def __init__(
        self,
        mel: int,
        memory: int,
        prenet: int,
        attention_rnn: int,
        decoder_rnn: int,
        attention: tuple[int, int, int],
        dropouts: tuple[float, float],
        prenet_drops: bool,
    ) -> None:
        super().__init__()
        self.prenet = Prenet(mel, prenet)
        self.attention_rnn = nn.LSTMCell(prenet + memory, attention_rnn)
        self.attention_layer = Attention(attention_rnn, memory, *attention)
        self.decoder_rnn = nn.LSTMCell(attention_rnn + memory, decoder_rnn)
        self.linear_projection = _Linear(decoder_rnn + memory, mel, bias=True)
        self.gate_layer = _Linear(decoder_rnn + memory, 1, bias=True)
        self.bins = mel
        self.dropouts = dropouts
        self.prenet_drops = prenet_drops

    def remember(self, features: Tensor, lengths: Tensor) -> _Memory:
        """Computes once what every step needs of the features (B, T, memory)."""
        attention = self.attention_layer
        there = mask_of(lengths, features.shape[1])
        return _Memory(features, attention.memory_layer(features), there, attention.location_layer.kernel())

    def begin(self, memory: _Memory) -> _States:
        """The states before the first frame."""
        batch, length, width = memory.features.shape

        def zeros(width: int) -> Tensor:
            return memory.features.new_zeros(batch, width)

        first, second = self.attention_rnn.hidden_size, self.decoder_rnn.hidden_size
        looked = memory.features.new_zeros(batch, length, dtype=torch.float32)
        return _States(zeros(first), zeros(first), zeros(second), zeros(second), looked, looked, zeros(width))

    def step(self, fed: Tensor, states: _States, memory: _Memory) -> _States:
        """One frame further; `fed` is what the prenet makes of the last one, (B, prenet)."""
        first, second = self.dropouts
        query, query_cell = self.attention_rnn(torch.cat([fed, states.context], -1), (states.attention, states.attention_cell))
        query = F.dropout(query, first, self.training)
        looked = torch.stack([states.weights, states.summed], 1)
        context, weights = self.attention_layer(query, memory, looked)
        state, cell = self.decoder_rnn(torch.cat([query, context], -1), (states.decoder, states.decoder_cell))
        state = F.dropout(state, second, self.training)
        return _States(query, query_cell, state, cell, weights, states.summed + weights, context)

    def frames(self, states: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """Decoder states and contexts (..., width) -> frames (..., mel) and logits of the gate (...)."""
        both = torch.cat([states, contexts], -1)
        return self.linear_projection(both), self.gate_layer(both)[..., 0]

    def guided(self, memory: _Memory, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The frames where each is fed the true one before it.

        Only what depends on the step before is computed step by step: prenet and projections see all frames at once.

        Args:
            memory: see `remember`.
            mel: true frames (B, mel, F).

        Returns:
            Frames (B, mel, F), logits (B, F), alignments (B, F, T).
        """
        before = F.pad(mel, (1, 0))[..., :-1].permute(2, 0, 1)
        fed = self.prenet(before, self.prenet_drops or self.training)
        states, seen = self.begin(memory), []
        for frame in fed:
            states = self.step(frame, states, memory)
            seen.append((states.decoder, states.context, states.weights))
        decoder, context, weights = (torch.stack(each, 1) for each in zip(*seen, strict=True))
        frames, gate = self.frames(decoder, context)
        return frames.mT, gate, weights

    def free(self, memory: _Memory, most: int, threshold: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The frames where each is fed the one that was made before it, until all samples have ended.

        Returns:
            As `guided`, and how many frames each sample has: the gate is closed first within its last one.
        """
        batch = len(memory.features)
        states, seen = self.begin(memory), []
        frame = memory.features.new_zeros(batch, self.bins)
        lengths = torch.full((batch,), most, device=frame.device)
        for number in range(1, most + 1):
            states = self.step(self.prenet(frame, self.prenet_drops), states, memory)
            frame, gate = self.frames(states.decoder, states.context)
            seen.append((frame, gate, states.weights))
            ends = gate.float().sigmoid() > threshold
            lengths = torch.where(ends & (lengths == most), number, lengths)
            if number % STOP_CHECK == 0 and bool((lengths <= number).all()):
                break
        longest = min(int(lengths.max()), len(seen))
        frames, gates, weights = (torch.stack(each, 1) for each in zip(*seen[:longest], strict=True))
        return frames.mT, gates, weights, lengths


class Postnet(nn.Module):
    """What a whole spectrogram lacks.

    Args:
        mel: bins.
        width: of the layers between the first and the last.
        convolutions: how many.
        kernel_size: of them.
    """

    def __init__(self, mel: int, width: int, convolutions: int, kernel_size: int) -> None:
        super().__init__()
        widths = [mel, *[width] * (convolutions - 1), mel]
        self.convolutions = _stack(widths, kernel_size, [_TANH] * (convolutions - 1) + [1.0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, mel, F) -> (B, mel, F)."""
        for number, layer in enumerate(self.convolutions, 1):
            x = layer(x)
            x = F.dropout(x.tanh() if number < len(self.convolutions) else x, CONVOLUTION_DROPOUT, self.training)
        return x


@ARCHS.register("nv_tacotron2")
class Tacotron2(nn.Module):
    """Tacotron 2 in NVIDIA's form; the defaults are the published one, which was trained on LJSpeech.

    Args:
        n_symbols: letters and other signs that texts are made of; NVIDIA's table has 148.
        symbols_embedding_dim: width of their embedding; must be `encoder_embedding_dim`.
        encoder_kernel_size: of the encoder's convolutions.
        encoder_n_convolutions: how many.
        encoder_embedding_dim: width of the encoder, even.
        n_mel_channels: bins of a frame.
        prenet_dim: width of what is fed back.
        attention_rnn_dim: of the first LSTM.
        decoder_rnn_dim: of the second.
        attention_dim: in which state and text are compared.
        attention_location_n_filters: of the convolution over earlier attention.
        attention_location_kernel_size: of it.
        postnet_embedding_dim: width of the network that corrects whole spectrograms.
        postnet_kernel_size: of its convolutions.
        postnet_n_convolutions: how many.
        p_attention_dropout: of the first LSTM's state, in training.
        p_decoder_dropout: of the second's.
        prenet_dropout: `always`: what is fed back is also dropped out in evaluation, as published, which makes each reading a
            little different; `training`: only there.
        gate_threshold: probability of the end from which on a sample has ended (`inference`).
        max_decoder_steps: frames after which it ends in any case.
        mask_padding: what is beyond the end of a shorter sample is 0, and does not count in the loss.

    Raises:
        ValueError: widths do not fit each other.
    """

    def __init__(
        self,
        *,
        n_symbols: PositiveInt = 148,
        symbols_embedding_dim: PositiveInt = 512,
        encoder_kernel_size: PositiveInt = 5,
        encoder_n_convolutions: PositiveInt = 3,
        encoder_embedding_dim: PositiveInt = 512,
        n_mel_channels: PositiveInt = 80,
        prenet_dim: PositiveInt = 256,
        attention_rnn_dim: PositiveInt = 1024,
        decoder_rnn_dim: PositiveInt = 1024,
        attention_dim: PositiveInt = 128,
        attention_location_n_filters: PositiveInt = 32,
        attention_location_kernel_size: PositiveInt = 31,
        postnet_embedding_dim: PositiveInt = 512,
        postnet_kernel_size: PositiveInt = 5,
        postnet_n_convolutions: PositiveInt = 5,
        p_attention_dropout: Fraction = 0.1,
        p_decoder_dropout: Fraction = 0.1,
        prenet_dropout: Literal["always", "training"] = "always",
        gate_threshold: Fraction = 0.5,
        max_decoder_steps: PositiveInt = 1000,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        if symbols_embedding_dim != encoder_embedding_dim or encoder_embedding_dim % 2:
            raise ValueError(
                f"symbols_embedding_dim {symbols_embedding_dim} and encoder_embedding_dim {encoder_embedding_dim} must be "
                "equal and even"
            )
        for name, size in (
            ("encoder_kernel_size", encoder_kernel_size),
            ("postnet_kernel_size", postnet_kernel_size),
            ("attention_location_kernel_size", attention_location_kernel_size),
        ):
            if size % 2 == 0:
                raise ValueError(f"{name} {size} must be odd, or the length would change")
        self.mask_padding, self.gate_threshold, self.max_decoder_steps = mask_padding, gate_threshold, max_decoder_steps
        self.embedding = nn.Embedding(n_symbols, symbols_embedding_dim)
        bound = math.sqrt(6 / (n_symbols + symbols_embedding_dim))
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        self.encoder = Encoder(encoder_embedding_dim, encoder_n_convolutions, encoder_kernel_size)
        self.decoder = Decoder(
            n_mel_channels,
            encoder_embedding_dim,
            prenet_dim,
            attention_rnn_dim,
            decoder_rnn_dim,
            (attention_dim, attention_location_n_filters, attention_location_kernel_size),
            (p_attention_dropout, p_decoder_dropout),
            prenet_dropout == "always",
        )
        self.postnet = Postnet(n_mel_channels, postnet_embedding_dim, postnet_n_convolutions, postnet_kernel_size)

    def forward(
        self, text: Tensor, text_lengths: Tensor, mel: Tensor, output_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The spectrogram of a text, guided by the true one.

        Args:
            text: numbers of signs (B, T), int64; samples may be in any order. As published, the encoder's convolutions see what
                a shorter text is filled up with.
            text_lengths: how many signs of each are text, (B,).
            mel: true log-mel spectrograms (B, n_mel_channels, F).
            output_lengths: how many frames of each are true, (B,).

        Returns:
            Spectrogram (B, n_mel_channels, F), the same corrected by the postnet, logits of the gate (B, F), which says that a
            sample has ended, and alignments (B, F, T), float32, whose rows are probabilities.
        """
        memory = self._remember(text, text_lengths)
        frames, gate, alignments = self.decoder.guided(memory, mel)
        corrected = frames + self.postnet(frames)
        if self.mask_padding:
            beyond = ~mask_of(output_lengths, mel.shape[-1])
            frames, corrected = (each.masked_fill(beyond[:, None], 0) for each in (frames, corrected))
            gate = gate.masked_fill(beyond, CERTAINLY_LAST)
        return frames, corrected, gate, alignments

    @torch.inference_mode()
    def inference(self, text: Tensor, text_lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The spectrogram of a text alone.

        Args:
            text: (B, T), int64.
            text_lengths: (B,); all are whole if it is not given.

        Returns:
            As `forward`, with as many frames as the longest sample has, and the frames of each sample, (B,). One that has not
            ended has `max_decoder_steps`.
        """
        if text_lengths is None:
            text_lengths = torch.full((len(text),), text.shape[1], device=text.device)
        memory = self._remember(text, text_lengths)
        frames, gate, alignments, lengths = self.decoder.free(memory, self.max_decoder_steps, self.gate_threshold)
        there = mask_of(lengths, frames.shape[-1])[:, None]
        frames = frames * there
        return frames, (frames + self.postnet(frames)) * there, gate, alignments, lengths

    def _remember(self, text: Tensor, lengths: Tensor) -> _Memory:
        return self.decoder.remember(self.encoder(self.embedding(text), lengths), lengths)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {
            "n_symbols": 7,
            "symbols_embedding_dim": 6,
            "encoder_kernel_size": 3,
            "encoder_n_convolutions": 2,
            "encoder_embedding_dim": 6,
            "n_mel_channels": 4,
            "prenet_dim": 5,
            "attention_rnn_dim": 6,
            "decoder_rnn_dim": 7,
            "attention_dim": 3,
            "attention_location_n_filters": 2,
            "attention_location_kernel_size": 3,
            "postnet_embedding_dim": 5,
            "postnet_kernel_size": 3,
            "postnet_n_convolutions": 2,
            "prenet_dropout": "training",
        }
        text, mel = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 1]]), torch.randn(2, 4, 6)
        return options, (text, torch.tensor([3, 4]), mel, torch.tensor([6, 4]))
