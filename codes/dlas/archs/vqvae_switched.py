"""VQ-VAEs of two levels whose inner convolutions are switched: DL-Art-School's, of 2021.

Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", NeurIPS 2019 (arXiv:1906.00446), with the layers of
Betker 2021, "Switched Convolutions - Spatial MoE for Convolutions".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dlas.archs.vqvae import VQVAE, Levels
from dlas.layers.switched import switch_convolutions
from dlas.layers.vector_quantizer import ColumnVectorQuantizer
from dlas.registry import ARCHS
from dlas.types import Fraction, NonNegativeInt, PositiveInt

INNER = (
    *("enc_b.blocks.2", "enc_b.blocks.4", "enc_t.blocks.2", "upsample_t.conv"),
    *("dec_t.blocks.*", "dec_t.blocks.*.conv", "dec.blocks.*", "dec.blocks.*.conv"),
)
"""All convolutions but the first of each encoder, those in residual blocks and those in front of the codes."""

OUTER_CHANNELS = 32
"""Between the pictures and the inner network of `vqvae3_hard_switch`."""


@ARCHS.register("vqvae_norm_hard_switched_conv_lambda")
class SwitchedVQVAE(VQVAE):
    """`vqvae` with `resampling: nearest`, whose inner convolutions are switched; the bottom level has twice as many codes.

    Args:
        in_channel: channels of a picture.
        channel: width of encoders and decoders.
        n_res_block: residual blocks of each.
        n_res_channel: channels within a residual block.
        codebook_dim: channels of codes.
        codebook_size: codes of the top level.
        decay: of the averages that codes follow.
        breadth: kernels of each switched convolution.
        dropout: probability with which a kernel is out of a picture's choice in training.
    """

    random = True

    def __init__(
        self,
        *,
        in_channel: PositiveInt = 3,
        channel: PositiveInt = 128,
        n_res_block: NonNegativeInt = 2,
        n_res_channel: PositiveInt = 32,
        codebook_dim: PositiveInt = 64,
        codebook_size: PositiveInt = 512,
        decay: Fraction = 0.99,
        breadth: PositiveInt = 8,
        dropout: Fraction = 0.4,
    ) -> None:
        super().__init__(
            in_channel=in_channel,
            channel=channel,
            n_res_block=n_res_block,
            n_res_channel=n_res_channel,
            codebook_dim=codebook_dim,
            codebook_size=codebook_size,
            decay=decay,
            resampling="nearest",
        )
        self.quantize_b = ColumnVectorQuantizer(2 * codebook_size, codebook_dim, decay=decay)
        switch_convolutions(self, INNER, breadth, norm="rescaled", dropout=dropout)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options, inputs = VQVAE.tiny()
        return {**options, "breadth": 3}, inputs


@ARCHS.register("vqvae3_hard_switch")
class OuterSwitchedVQVAE(VQVAE):
    """The same between two plain convolutions with 32 channels inside, with as many codes at each level and leaky ReLUs.

    Those in residual blocks do not leak.

    Args:
        in_channel: channels of a picture.
        channel: width of encoders and decoders.
        n_res_block: residual blocks of each.
        n_res_channel: channels within a residual block.
        codebook_dim: channels of codes.
        codebook_size: codes of each level.
        decay: of the averages that codes follow.
        breadth: kernels of each switched convolution.
        dropout: probability with which a kernel is out of a picture's choice in training.
    """

    random = True

    def __init__(
        self,
        *,
        in_channel: PositiveInt = 3,
        channel: PositiveInt = 128,
        n_res_block: NonNegativeInt = 2,
        n_res_channel: PositiveInt = 32,
        codebook_dim: PositiveInt = 64,
        codebook_size: PositiveInt = 512,
        decay: Fraction = 0.99,
        breadth: PositiveInt = 16,
        dropout: Fraction = 0.4,
    ) -> None:
        super().__init__(
            in_channel=OUTER_CHANNELS,
            channel=channel,
            n_res_block=n_res_block,
            n_res_channel=n_res_channel,
            codebook_dim=codebook_dim,
            codebook_size=codebook_size,
            decay=decay,
            resampling="nearest",
        )
        for part in (self.enc_b, self.enc_t, self.dec_t, self.dec):
            for number, layer in enumerate(part.blocks):
                if isinstance(layer, nn.ReLU):
                    part.blocks[number] = nn.LeakyReLU()
        self.initial_conv = nn.Sequential(nn.Conv2d(in_channel, OUTER_CHANNELS, 3, padding=1), nn.LeakyReLU())
        self.final_conv = nn.Conv2d(OUTER_CHANNELS, in_channel, 3, padding=1)
        switch_convolutions(self, INNER, breadth, norm="rescaled", dropout=dropout)

    def encode(self, x: Tensor) -> Levels:
        """Codes of pictures, as of `vqvae`."""
        return super().encode(self.initial_conv(x))

    def decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Pictures of codes, as of `vqvae`."""
        return self.final_conv(super().decode(top, bottom))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return SwitchedVQVAE.tiny()
