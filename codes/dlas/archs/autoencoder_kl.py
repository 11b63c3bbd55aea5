"""The autoencoder of latent diffusion whose latents are normally distributed.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022 (arXiv:2112.10752), section 3.1 and
appendix G; Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (arXiv:1312.6114). Layers have the names of the
published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.layers.autoencoder import AutoencoderOptions, LatentAutoencoder
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveFloat, PositiveInt

LOG_VARIANCE_LIMITS = (-30.0, 20.0)
"""The encoder's logarithm of the variance is kept within these."""


@ARCHS.register("autoencoder_kl")
class AutoencoderKL(LatentAutoencoder):
    """Pictures in [-1, 1] to smaller latents with a mean and a variance, and back; the defaults are KL-f8, Stable Diffusion's.

    Train it with `pix` and `feature` or `lpips` of the first output, `gaussian_kl` of the others with a weight of about 1e-6,
    and perhaps a discriminator: `{type: generator, generator: vae, in: hq, out: [gen, mean, log_variance]}`. For a diffusion of
    latents, `{type: generator, generator: vae, method: latents, in: hq, out: latents, grad: false}` gives its data, and
    `method: pictures` makes pictures of its samples.

    Args:
        in_channels: channels of a picture.
        out_channels: channels of its reconstruction.
        channels: width: channels of the first level for a `channel_mult` of 1.
        channel_mult: channels of each level, in `channels`; between levels the picture is halved.
        num_res_blocks: residual blocks a level of the encoder; the decoder has one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention; the middle
            always has it.
        z_channels: channels of what encoder and decoder work with.
        embed_dim: channels of latents.
        scale_factor: over the latents' standard deviation, so that a diffusion's data have unit size.
        dropout: probability with which features are dropped within residual blocks.
        norm_groups: groups of normalisation: 32 (`guided`), or fewer for up to 64 channels (`dlas`).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.

    Raises:
        ValueError: sizes do not go together.
    """

    def __init__(
        self,
        *,
        in_channels: PositiveInt = 3,
        out_channels: PositiveInt = 3,
        channels: PositiveInt = 128,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: PositiveInt = 2,
        attention_resolutions: Sequence[int] = (),
        z_channels: PositiveInt = 4,
        embed_dim: PositiveInt = 4,
        scale_factor: PositiveFloat = 0.18215,
        dropout: Fraction = 0.0,
        norm_groups: Literal["guided", "dlas"] = "guided",
        low_precision_norm: bool = False,
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
        super().__init__(options, 2 * z_channels, scale_factor)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructs pictures from latents, which are drawn in training, and are means otherwise.

        Args:
            x: (B, in_channels, H, W), H and W multiples of `factor`.
            noise: with which latents are drawn, (B, embed_dim, H / factor, W / factor); by default from torch's own generator
                in training, and none otherwise.

        Returns:
            Pictures (B, out_channels, H, W), and means and logarithms of variances of latents,
            (B, embed_dim, H / factor, W / factor).
        """
        mean, log_variance = self.encode(x)
        if noise is None and self.training:
            noise = torch.randn_like(mean)
        z = mean if noise is None else sample(mean, log_variance, noise)
        return self.decode(z), mean, log_variance

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means, which are the modes, and logarithms of variances of the latents of pictures, not scaled."""
        moments = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            mean, log_variance = self.quant_conv(moments).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_LIMITS)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents (B, embed_dim, h, w) that are not scaled."""
        return self.decoder(self.post_quant_conv(z))

    def latents(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents of pictures: drawn with noise of their shape, or modes."""
        mean, log_variance = self.encode(x)
        return self.scale_factor * (mean if noise is None else sample(mean, log_variance, noise))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "z_channels": 3, "embed_dim": 2}
        more = {"attention_resolutions": [2], "norm_groups": "dlas"}
        return options | more, (torch.randn(2, 3, 8, 12), torch.randn(2, 2, 4, 6))


def sample(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Latents with these moments, by standard normal `noise` of their shape."""
    return mean + (log_variance / 2).exp() * noise
