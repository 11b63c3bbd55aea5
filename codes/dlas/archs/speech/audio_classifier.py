"""The classifier of TorToiSe: is a clip real or synthesised; and of any other kinds of sound.

``classifier.pth`` of tortoise-tts loads. Residual blocks: He et al. 2016 (arXiv:1512.03385); attention: Vaswani et al. 2017
(arXiv:1706.03762).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.group_norm import GroupNorm
from dlas.layers.recompute import recompute
from dlas.layers.sequence_attention import SequenceAttention
from dlas.layers.zeroed import zeroed
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt


class ResidualBlock(nn.Module):
    """Two convolutions beside which the input passes."""

    def __init__(self, channels: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.in_layers = nn.Sequential(
            GroupNorm(channels, "dlas"), nn.SiLU(), nn.Conv1d(channels, channels, kernel_size, padding=pad)
        )
        last = zeroed(nn.Conv1d(channels, channels, kernel_size, padding=pad))
        self.out_layers = nn.Sequential(GroupNorm(channels, "dlas"), nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> the same shape."""
        return x + self.out_layers(self.in_layers(x))


class Downsample(nn.Module):
    """A strided convolution that doubles the channels."""

    def __init__(self, channels: int, kernel_size: int, factor: int) -> None:
        super().__init__()
        self.op = nn.Conv1d(channels, 2 * channels, kernel_size, stride=factor, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, 2 channels, ceil(T / factor))."""
        return self.op(x)


class AudioEncoder(nn.Module):
    """Sound as one vector: residual blocks and strides, then attention, of whose positions the first is the result."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        blocks: int,
        kernel_size: int,
        factor: int,
        out_channels: int,
        attention_blocks: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.init = nn.Sequential(nn.Conv1d(in_channels, channels, 3, padding=1))
        layers: list[nn.Module] = []
        for level in range(depth):
            width = channels * 2**level
            layers += [ResidualBlock(width, kernel_size, dropout) for _ in range(blocks)]
            layers.append(Downsample(width, kernel_size, factor))
        self.res = nn.Sequential(*layers)
        width = channels * 2**depth
        self.final = nn.Sequential(GroupNorm(width, "dlas"), nn.SiLU(), nn.Conv1d(width, out_channels, 1))
        self.attn = nn.Sequential(*(SequenceAttention(out_channels, heads) for _ in range(attention_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) -> (B, out_channels)."""
        features = self.init(x)
        for layer in self.res:
            features = recompute(layer, features, when=self.checkpointing and self.training, random=True)
        return self.attn(self.final(features))[:, :, 0]


@ARCHS.register("mini_audio_encoder_classifier")
class AudioClassifier(nn.Module):
    """Classifies sound; the defaults are those of the published network, but for its dropout.

    Args:
        classes: kinds of sound.
        spec_dim: channels of the input: 1 for waveforms, those of spectrograms otherwise.
        embedding_dim: channels of the vector that is classified.
        base_channels: width at first; it doubles at each level.
        depth: levels.
        resnet_blocks: residual blocks of each level.
        attn_blocks: blocks of attention at the end.
        num_attn_heads: of attention.
        dropout: within residual blocks.
        downsample_factor: stride between levels.
        kernel_size: of convolutions, odd.
    """

    def __init__(
        self,
        *,
        classes: PositiveInt = 2,
        spec_dim: PositiveInt = 1,
        embedding_dim: PositiveInt = 512,
        base_channels: PositiveInt = 32,
        depth: PositiveInt = 5,
        resnet_blocks: PositiveInt = 2,
        attn_blocks: PositiveInt = 4,
        num_attn_heads: PositiveInt = 4,
        dropout: Fraction = 0.0,
        downsample_factor: PositiveInt = 4,
        kernel_size: PositiveInt = 5,
    ) -> None:
        super().__init__()
        self.enc = AudioEncoder(
            spec_dim,
            base_channels,
            depth,
            resnet_blocks,
            kernel_size,
            downsample_factor,
            embedding_dim,
            attn_blocks,
            num_attn_heads,
            dropout,
        )
        self.head = nn.Linear(embedding_dim, classes)

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return self.enc.checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self.enc.checkpointing = on

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Classifies.

        Args:
            x: (B, spec_dim, T).
            labels: (B,), whole numbers; the cross-entropy is the result then.

        Returns:
            Logits (B, classes); with labels a scalar in float32.
        """
        logits = self.head(self.enc(x))
        return logits if labels is None else F.cross_entropy(logits.float(), labels)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {
            "embedding_dim": 8,
            "base_channels": 8,
            "depth": 2,
            "resnet_blocks": 1,
            "attn_blocks": 1,
            "num_attn_heads": 2,
        }
        return options, (torch.randn(2, 1, 64),)
