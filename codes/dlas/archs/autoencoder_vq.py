"""The autoencoder of latent diffusion whose latents are codes of a codebook.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022 (arXiv:2112.10752), section 3.1 and
appendix G; Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021 (arXiv:2012.09841). Layers have
the names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.layers.autoencoder import AutoencoderOptions, LatentAutoencoder
from dlas.layers.quantizers import create_quantizer
from dlas.layers.vector_quantizer import Quantizer, VectorQuantizer
from dlas.registry import ARCHS
from dlas.types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, QuantizerOptions


@ARCHS.register("autoencoder_vq")
class AutoencoderVQ(LatentAutoencoder):
    """Pictures in [-1, 1] to smaller latents, each pixel a code, and back; the defaults are VQ-f4.

    Train it with `pix` and `feature` or `lpips` of the first output and `direct` of the second, and perhaps a discriminator:
    `{type: generator, generator: vqgan, in: hq, out: [gen, codebook_loss, perplexity, usage]}`. As in latent diffusion,
    `latents` are those before quantisation, and `pictures` quantises.

    Args:
        in_channels: channels of a picture.
        out_channels: channels of its reconstruction.
        channels: width: channels of the first level for a `channel_mult` of 1.
        channel_mult: channels of each level, in `channels`; between levels the picture is halved.
        num_res_blocks: residual blocks a level of the encoder; the decoder has one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention; the middle
            always has it.
        z_channels: channels of what encoder and decoder work with.
        embed_dim: channels of codes.
        n_embed: codes.
        commitment: weight, within the second output, of how far latents are from their codes.
        codebook_decay: of averages that codes follow, 0.99 for instance; without it they are learned by gradients, as in the
            published networks.
        scale_factor: over the latents' standard deviation, so that a diffusion's data have unit size.
        dropout: probability with which features are dropped within residual blocks.
        norm_groups: groups of normalisation: 32 (`guided`), or fewer for up to 64 channels (`dlas`).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.
        quantizer: another one than the published networks', which `commitment` and `codebook_decay` are about.

    Raises:
        ValueError: sizes do not go together.
    """

    def __init__(
        self,
        *,
        in_channels: PositiveInt = 3,
        out_channels: PositiveInt = 3,
        channels: PositiveInt = 128,
        channel_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: PositiveInt = 2,
        attention_resolutions: Sequence[int] = (),
        z_channels: PositiveInt = 3,
        embed_dim: PositiveInt = 3,
        n_embed: PositiveInt = 8192,
        commitment: NonNegativeFloat = 0.25,
        codebook_decay: Fraction | None = None,
        scale_factor: PositiveFloat = 1.0,
        dropout: Fraction = 0.0,
        norm_groups: Literal["guided", "dlas"] = "guided",
        low_precision_norm: bool = False,
        quantizer: QuantizerOptions | None = None,
    ) -> None:
        options = AutoencoderOptions(
            in_channels=in_channels,
            out_channels=out_channels,
            latent_channels=z_channels,
            channels=channels,
            channel_mult=channel_mult,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            norm_groups=norm_groups,
            low_precision_norm=low_precision_norm,
        )
        super().__init__(options, z_channels, scale_factor)
        self.quantize: Quantizer
        if quantizer is None:
            self.quantize = VectorQuantizer(n_embed, embed_dim, commitment, codebook_decay)
        else:
            self.quantize = create_quantizer(quantizer, n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstructs pictures from codes.

        Args:
            x: (B, in_channels, H, W), H and W multiples of `factor`.

        Returns:
            Pictures (B, out_channels, H, W); the codebook's loss; how many codes are in use (perplexity), and the share of them
            that is used at all; all scalars.
        """
        codes = self.quantize(self.encode(x))
        return self.decoder(self.post_quant_conv(codes.vectors)), codes.loss, codes.perplexity, codes.usage

    def encode(self, x: Tensor) -> Tensor:
        """Latents of pictures before quantisation, (B, embed_dim, H / factor, W / factor), not scaled."""
        features = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.quant_conv(features)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of the codes nearest to latents (B, embed_dim, h, w)."""
        return self.decoder(self.post_quant_conv(self.quantize(z).vectors))

    def indices(self, x: Tensor) -> Tensor:
        """Which codes stand for pictures: (B, H / factor, W / factor), int64."""
        return self.quantize(self.encode(x)).indices

    def from_indices(self, indices: Tensor) -> Tensor:
        """Pictures of codes (B, h, w)."""
        return self.decoder(self.post_quant_conv(self.quantize.lookup(indices)))

    def latents(self, x: Tensor) -> Tensor:
        """Scaled latents of pictures before quantisation."""
        return self.scale_factor * self.encode(x)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "z_channels": 3, "embed_dim": 2, "n_embed": 5}
        return options | {"attention_resolutions": [2], "norm_groups": "dlas"}, (torch.randn(2, 3, 8, 12),)
