"""A discrete autoencoder: one level of codes between strided convolutions and enlarging ones.

Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021 (arXiv:2102.12092), section 2.1, with a vector quantiser in the
place of the Gumbel softmax, as in DL-Art-School, whose names the layers have: ``encoder.<i>``, ``quantizer``, ``decoder.<i>``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.recompute import recompute
from dlas.layers.vector_quantizer import ExpiringVectorQuantizer, Quantized
from dlas.registry import ARCHS
from dlas.types import NonNegativeInt, PositiveInt

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class ResidualBlock(nn.Module):
    """Two convolutions 3 wide and one 1 wide, beside which the input passes."""

    def __init__(self, dims: int, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.net = nn.Sequential(
            conv(channels, channels, 3, padding=1),
            activation(),
            conv(channels, channels, 3, padding=1),
            activation(),
            conv(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, ...) -> the same shape."""
        return x + self.net(x)


class EnlargingConvolution(nn.Module):
    """Every value repeated, then a convolution."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel_size: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = CONVOLUTIONS[dims](in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, L, ...) -> (B, out_channels, L * factor, ...)."""
        return self.conv(F.interpolate(x, scale_factor=self.factor, mode="nearest"))


@ARCHS.register("dvae")
class DiscreteVAE(nn.Module):
    """Pictures or sequences to codes and back, with one codebook.

    Train it with `direct` of the first two outputs:
    `{type: generator, generator: dvae, in: hq, out: [mse, commitment, gen, perplexity]}`.

    Args:
        positional_dims: 2 for pictures, 1 for sequences.
        num_tokens: codes.
        codebook_dim: channels of what is replaced by codes.
        num_layers: strided convolutions; the width doubles with each after the first.
        num_resnet_blocks: residual blocks of encoder and decoder each.
        hidden_dim: width of the first convolution.
        channels: of the input.
        stride: of each convolution.
        kernel_size: of each convolution, odd.
        activation: behind convolutions.
        quantizer_use_cosine_sim: codes are compared by their direction in place of their distance.
        quantizer_codebook_misses_to_expiration: steps without any use after which a code is replaced by a vector of the batch.
        quantizer_codebook_embedding_compression: channels of codes, to and from which linear layers lead; None: `codebook_dim`.

    Raises:
        ValueError: `positional_dims` is neither 1 nor 2, or `kernel_size` is even.
    """

    def __init__(
        self,
        *,
        positional_dims: PositiveInt = 2,
        num_tokens: PositiveInt = 512,
        codebook_dim: PositiveInt = 512,
        num_layers: PositiveInt = 3,
        num_resnet_blocks: NonNegativeInt = 0,
        hidden_dim: PositiveInt = 64,
        channels: PositiveInt = 3,
        stride: PositiveInt = 2,
        kernel_size: PositiveInt = 3,
        activation: Literal["relu", "silu"] = "relu",
        quantizer_use_cosine_sim: bool = True,
        quantizer_codebook_misses_to_expiration: PositiveInt = 40,
        quantizer_codebook_embedding_compression: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if positional_dims not in CONVOLUTIONS:
            raise ValueError(f"positional_dims must be 1 or 2, got {positional_dims}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.checkpointing = False
        self.factor = stride**num_layers
        self.dims = positional_dims
        conv, act = CONVOLUTIONS[positional_dims], ACTIVATIONS[activation]
        widths = [hidden_dim * 2**level for level in range(num_layers)]
        inner = widths[-1]
        encoder: list[nn.Module] = [
            nn.Sequential(conv(width, wider, kernel_size, stride=stride, padding=kernel_size // 2), act())
            for width, wider in pairwise([channels, *widths])
        ]
        encoder += [ResidualBlock(positional_dims, inner, act) for _ in range(num_resnet_blocks)]
        self.encoder = nn.Sequential(*encoder, conv(inner, codebook_dim, 1))
        self.quantizer = ExpiringVectorQuantizer(
            num_tokens,
            codebook_dim,
            cosine=quantizer_use_cosine_sim,
            patience=quantizer_codebook_misses_to_expiration,
            compression=quantizer_codebook_embedding_compression,
        )
        decoder: list[nn.Module] = [conv(codebook_dim, inner, 1)] if num_resnet_blocks else []
        decoder += [ResidualBlock(positional_dims, inner, act) for _ in range(num_resnet_blocks)]
        decoder += [
            nn.Sequential(EnlargingConvolution(positional_dims, width, narrower, kernel_size, stride), act())
            for width, narrower in pairwise([inner if num_resnet_blocks else codebook_dim, *reversed(widths)])
        ]
        self.decoder = nn.Sequential(*decoder, conv(hidden_dim, channels, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstructs inputs from codes.

        Args:
            x: (B, channels, H, W) or (B, channels, L), sides multiples of `factor`.

        Returns:
            The squared errors, shape of `x`; how far vectors are from their codes, a scalar in float32; the reconstruction;
            how many codes are in use (perplexity), a scalar.

        Raises:
            ValueError: a side is no multiple of `factor`.
        """
        codes = self.encode(x)
        found, _ = self._decode(codes.vectors)
        return F.mse_loss(found.float(), x.float(), reduction="none"), codes.loss, found, codes.perplexity

    def encode(self, x: Tensor) -> Quantized:
        """Codes of inputs, `factor` times smaller. Arguments and errors as of `forward`."""
        for side in x.shape[-self.dims :]:
            if side % self.factor:
                raise ValueError(f"a side of {side} is no multiple of {self.factor}, by which the DVAE makes its input smaller")
        return self.quantizer(recompute(self.encoder, x, when=self.checkpointing and self.training))

    def get_codebook_indices(self, x: Tensor) -> Tensor:
        """Which codes stand for inputs, (B, ...), int64. Arguments and errors as of `forward`."""
        return self.encode(x).indices

    def decode(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions of codes (B, ...), and the features that the last convolution made them of."""
        return self._decode(self.quantizer.lookup(indices))

    def _decode(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        features = recompute(self.decoder[:-1], codes, when=self.checkpointing and self.training)
        return self.decoder[-1](features), features

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"num_tokens": 6, "codebook_dim": 4, "num_layers": 2, "num_resnet_blocks": 1, "hidden_dim": 4}
        return options | {"quantizer_codebook_embedding_compression": 2}, (torch.randn(2, 3, 8, 12),)
