"""VQ-VAE-2 with two levels: a picture, or a sequence, as codes of its coarse structure and codes of what that leaves open.

Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", NeurIPS 2019 (arXiv:1906.00446), section 3.1 and
algorithm 1. Layers have the names of rosinality's implementation, which DL-Art-School has too: ``enc_b``, ``enc_t``,
``quantize_conv_t``, ``quantize_t``, ``dec_t``, ``quantize_conv_b``, ``quantize_b``, ``upsample_t``, ``dec``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.quantizers import create_quantizer
from dlas.layers.recompute import recompute
from dlas.layers.vector_quantizer import ColumnVectorQuantizer, Quantized
from dlas.registry import ARCHS
from dlas.types import Fraction, NonNegativeInt, PositiveInt, QuantizerOptions

FACTOR = 8
"""How much smaller the top level is than the input; the bottom level is twice its size."""

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


class Upsample(nn.Module):
    """Nearest neighbours at twice the size, then a convolution 5 wide."""

    def __init__(self, dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[dims](in_channels, out_channels, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, L, ...) -> (B, out_channels, 2 L, ...)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


Resampling: TypeAlias = Literal["transposed", "nearest"]
"""transposed: strided and transposed convolutions, 4 wide, as VQ-VAE-2 has them. nearest: strided convolutions, and ones behind
nearest neighbours, 5 wide: these have middles, as switched convolutions need."""


def halve(dims: int, form: Resampling, in_channels: int, out_channels: int) -> nn.Module:
    """A layer that halves the size."""
    width, padding = (4, 1) if form == "transposed" else (5, 2)
    return CONVOLUTIONS[dims](in_channels, out_channels, width, stride=2, padding=padding)


def double(dims: int, form: Resampling, in_channels: int, out_channels: int) -> nn.Module:
    """A layer that doubles the size."""
    if form == "transposed":
        return TRANSPOSED[dims](in_channels, out_channels, 4, stride=2, padding=1)
    return Upsample(dims, in_channels, out_channels)


class Levels(NamedTuple):
    """What both levels make of an input."""

    top: Quantized
    bottom: Quantized


class ResidualBlock(nn.Module):
    """A 3 wide and a 1 wide convolution, each behind a ReLU, beside which the input passes, behind the first ReLU too.

    The published networks' first ReLU works in place, so that what they add is no longer the input itself.
    """

    def __init__(self, dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.conv = nn.Sequential(nn.Identity(), conv(channels, hidden, 3, padding=1), nn.ReLU(), conv(hidden, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, ...) -> the same shape."""
        x = F.relu(x)
        return x + self.conv(x)


class Encoder(nn.Module):
    """Convolutions that halve the input, then residual blocks."""

    def __init__(
        self,
        dims: int,
        form: Resampling,
        in_channels: int,
        channels: int,
        blocks: int,
        hidden: int,
        *,
        halvings: int,
    ) -> None:
        super().__init__()
        widths = [in_channels, channels // 2, *[channels] * (halvings - 1)]
        layers: list[nn.Module] = []
        for width, wider in pairwise(widths):
            layers += [halve(dims, form, width, wider), nn.ReLU()]
        layers.append(CONVOLUTIONS[dims](widths[-1], channels, 3, padding=1))
        layers += [ResidualBlock(dims, channels, hidden) for _ in range(blocks)]
        self.blocks = nn.Sequential(*layers, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, L, ...) -> (B, channels, L / 2**halvings, ...)."""
        return self.blocks(x)


class Decoder(nn.Module):
    """Residual blocks, then layers that double the size."""

    def __init__(
        self,
        dims: int,
        form: Resampling,
        in_channels: int,
        out_channels: int,
        channels: int,
        blocks: int,
        hidden: int,
        *,
        doublings: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [CONVOLUTIONS[dims](in_channels, channels, 3, padding=1)]
        layers += [ResidualBlock(dims, channels, hidden) for _ in range(blocks)]
        widths = [channels, *[channels // 2] * (doublings - 1), out_channels]
        for width, narrower in pairwise(widths):
            layers += [nn.ReLU(), double(dims, form, width, narrower)]
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, L, ...) -> (B, out_channels, L * 2**doublings, ...)."""
        return self.blocks(x)


@ARCHS.register("vqvae")
class VQVAE(nn.Module):
    """Pictures to codes of two levels and back (VQ-VAE-2).

    The codes follow averages of the vectors that they stand for. Train it with `pix` of the first output and `direct` of the
    second, at a weight of 0.25: `{type: generator, generator: vqvae, in: hq, out: [gen, codebook_commitment_loss]}`. Further
    outputs tell how many codes of the top and of the bottom level are in use.

    Args:
        in_channel: channels of a picture; -1 for one channel whose axis is left out.
        channel: width of encoders and decoders.
        n_res_block: residual blocks of each.
        n_res_channel: channels within a residual block.
        codebook_dim: channels of codes.
        codebook_size: codes of each level.
        decay: of the averages that codes follow.
        quantizer: of each level, in place of the published network's.
        resampling: how sizes are halved and doubled. transposed: by strided and transposed convolutions, 4 wide, as published.
            nearest: by strided convolutions, and ones behind nearest neighbours, 5 wide; DL-Art-School's, for switched ones.

    Raises:
        ValueError: `in_channel` is 0 or below -1.
    """

    dims: ClassVar[int] = 2
    random: ClassVar[bool] = False  # whether encoders and decoders draw random numbers

    def __init__(
        self,
        *,
        in_channel: int = 3,
        channel: PositiveInt = 128,
        n_res_block: NonNegativeInt = 2,
        n_res_channel: PositiveInt = 32,
        codebook_dim: PositiveInt = 64,
        codebook_size: PositiveInt = 512,
        decay: Fraction = 0.99,
        quantizer: QuantizerOptions | None = None,
        resampling: Literal["transposed", "nearest"] = "transposed",
    ) -> None:
        super().__init__()
        if in_channel < -1 or in_channel == 0:
            raise ValueError(f"in_channel must be positive, or -1 for inputs without a channel axis, got {in_channel}")
        self.checkpointing = False
        self.codebook_size = codebook_size
        self.adds_axis = in_channel == -1
        in_channel = abs(in_channel)
        layers, residual = (self.dims, resampling), (channel, n_res_block, n_res_channel)
        conv = CONVOLUTIONS[self.dims]
        self.enc_b = Encoder(*layers, in_channel, *residual, halvings=2)
        self.enc_t = Encoder(*layers, channel, *residual, halvings=1)
        self.quantize_conv_t = conv(channel, codebook_dim, 1)
        self.quantize_t, self.quantize_b = (
            ColumnVectorQuantizer(codebook_size, codebook_dim, decay=decay)
            if quantizer is None
            else create_quantizer(quantizer, codebook_size, codebook_dim)
            for _ in range(2)
        )
        self.dec_t = Decoder(*layers, codebook_dim, codebook_dim, *residual, doublings=1)
        self.quantize_conv_b = conv(codebook_dim + channel, codebook_dim, 1)
        self.upsample_t = double(*layers, codebook_dim, codebook_dim)
        self.dec = Decoder(*layers, 2 * codebook_dim, in_channel, *residual, doublings=2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Reconstructs pictures from codes.

        Args:
            x: (B, in_channel, H, W), or (B, H, W) without a channel axis; H and W multiples of 8.

        Returns:
            The reconstruction, shape of `x`; how far vectors are from their codes, the mean squares of both levels summed: a
            tensor of shape (1,) in float32; how many codes are in use (perplexity) of the top and of the bottom level, and the
            share of them that is used at all of the top and of the bottom level, scalars.

        Raises:
            ValueError: H or W is no multiple of 8.
        """
        levels = self.encode(x)
        found = self.decode(levels.top.vectors, levels.bottom.vectors)
        loss = (levels.top.loss + levels.bottom.loss)[None]
        return found, loss, levels.top.perplexity, levels.bottom.perplexity, levels.top.usage, levels.bottom.usage

    def encode(self, x: Tensor) -> Levels:
        """Codes of pictures: 8 times smaller at the top level, 4 times at the bottom. Arguments and errors as of `forward`."""
        for side in x.shape[-self.dims :]:
            if side % FACTOR:
                raise ValueError(f"a side of {side} is no multiple of {FACTOR}, by which the VQ-VAE makes its input smaller")
        if self.adds_axis:
            x = x[:, None]
        bottom = self._recompute(self.enc_b, x)
        top = self.quantize_t(self.quantize_conv_t(self._recompute(self.enc_t, bottom)))
        expected = self._recompute(self.dec_t, top.vectors)
        return Levels(top, self.quantize_b(self.quantize_conv_b(torch.cat((expected, bottom), dim=1))))

    def decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Pictures of codes (B, codebook_dim, H / 8, W / 8) and (B, codebook_dim, H / 4, W / 4)."""
        codes = torch.cat((self.upsample_t(top), bottom), dim=1)
        found = self._recompute(self.dec, codes)
        return found[:, 0] if self.adds_axis else found

    def _recompute(self, part: nn.Module, x: Tensor) -> Tensor:
        return recompute(part, x, when=self.checkpointing and self.training, random=self.random)

    def from_indices(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Pictures of which codes, (B, H / 8, W / 8) and (B, H / 4, W / 4), int64."""
        return self.decode(self.quantize_t.lookup(top), self.quantize_b.lookup(bottom))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"channel": 8, "n_res_block": 1, "n_res_channel": 4, "codebook_dim": 4, "codebook_size": 6}
        return options, (torch.randn(2, 3, 16, 24),)


@ARCHS.register("vqvae_audio")
class AudioVQVAE(VQVAE):
    """Sequences, such as mel spectrograms, to codes of two levels and back: `vqvae` with one-dimensional convolutions.

    Args:
        in_channel: channels of a sequence; -1 for one channel whose axis is left out, as of waveforms (B, length).
        channel: width of encoders and decoders.
        n_res_block: residual blocks of each.
        n_res_channel: channels within a residual block.
        codebook_dim: channels of codes.
        codebook_size: codes of each level.
        decay: of the averages that codes follow.
        quantizer: of each level, in place of the published network's.
        resampling: how sizes are halved and doubled. transposed: by strided and transposed convolutions, 4 wide, as published.
            nearest: by strided convolutions, and ones behind nearest neighbours, 5 wide; DL-Art-School's, for switched ones.

    Raises:
        ValueError: `in_channel` is 0 or below -1.
    """

    dims: ClassVar[int] = 1

    def sequence(self, x: Tensor) -> Tensor:
        """One vocabulary for both levels, as an autoregressive model takes it.

        Returns:
            Which codes stand for sequences, (B, L / 8 + L / 4), int64: the bottom level's are below `codebook_size`; the top
            level's, which come first, from there on.
        """
        levels = self.encode(x)
        return torch.cat((levels.top.indices + self.codebook_size, levels.bottom.indices), dim=1)

    def from_sequence(self, codes: Tensor) -> Tensor:
        """Sequences of codes that `sequence` made.

        Raises:
            ValueError: there are not twice as many of the bottom level as of the top level.
        """
        if codes.shape[1] % 3:
            raise ValueError(
                f"codes of both levels are a multiple of 3 in number, two of them the bottom level's: {codes.shape[1]}"
            )
        top = codes.shape[1] // 3
        return self.from_indices(codes[:, :top] - self.codebook_size, codes[:, top:])

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return VQVAE.tiny()[0], (torch.randn(2, 3, 24),)
