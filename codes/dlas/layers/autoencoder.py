"""Encoder and decoder of latent diffusion's autoencoders.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022 (arXiv:2112.10752), section 3.1 and
appendix G, after Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv:2012.09841), table 7.
Layers have the names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.attention import as_pixels
from dlas.layers.group_norm import GroupNorm, GroupRule
from dlas.layers.recompute import recompute
from dlas.layers.unet import Upsample, check_side


@dataclass(frozen=True)
class AutoencoderOptions:
    """How both halves are built; the fields are options of the registered networks and described there."""

    in_channels: int
    out_channels: int
    latent_channels: int
    channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    dropout: float
    norm_groups: GroupRule
    low_precision_norm: bool

    @property
    def factor(self) -> int:
        """By which latents are smaller than pictures."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, that of the pictures' size first."""
        return [factor * self.channels for factor in self.channel_mult]

    def norm(self, channels: int) -> GroupNorm:
        """A normalisation."""
        return GroupNorm(channels, self.norm_groups, self.low_precision_norm, eps=1e-6)


class ResBlock(nn.Module):
    """Two convolutions in a residual branch."""

    def __init__(self, options: AutoencoderOptions, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = options.norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = options.norm(out_channels)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.changes = channels != out_channels
        if self.changes:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if self.changes else x) + h


class AttnBlock(nn.Module):
    """Attention of all pixels to all, with one head, in a residual branch."""

    def __init__(self, options: AutoencoderOptions, channels: int) -> None:
        super().__init__()
        self.norm = options.norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        h = self.norm(x)
        q, k, v = (as_pixels(layer(h))[:, None] for layer in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(seen.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves a picture by a convolution that sees one row and one column of zeros, at the bottom and at the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks at one size of pictures, with attention after each if asked for; then perhaps a change of size."""

    def __init__(
        self, options: AutoencoderOptions, channels: int, width: int, blocks: int, attention: bool, resample: str
    ) -> None:
        super().__init__()
        widths = [channels, *[width] * blocks]
        self.block = nn.ModuleList(ResBlock(options, a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(options, width) for _ in range(blocks if attention else 0))
        self.resample = resample
        if resample == "down":
            self.downsample = Downsample(width)
        elif resample == "up":
            self.upsample = Upsample(width, conv=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, width, H', W')."""
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        if self.resample == "down":
            return self.downsample(x)
        return self.upsample(x) if self.resample == "up" else x


class Middle(nn.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, options: AutoencoderOptions, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(options, channels, channels)
        self.attn_1 = AttnBlock(options, channels)
        self.block_2 = ResBlock(options, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures to latents.

    Args:
        options: of the network.
        out_channels: of what is told of latents.
    """

    def __init__(self, options: AutoencoderOptions, out_channels: int) -> None:
        super().__init__()
        self.options = options
        self.checkpointing = False
        channels, last = options.widths[0], len(options.widths) - 1
        self.conv_in = nn.Conv2d(options.in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for level, width in enumerate(options.widths):
            attention = 2**level in options.attention_resolutions
            resample = "down" if level < last else ""
            self.down.append(Level(options, channels, width, options.num_res_blocks, attention, resample))
            channels = width
        self.mid = Middle(options, channels)
        self.norm_out = options.norm(channels)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / factor, W / factor), in the type of the weights.

        Raises:
            ValueError: H or W is no multiple of the factor.
        """
        check_side("a picture's height", x.shape[-2], self.options.factor)
        check_side("a picture's width", x.shape[-1], self.options.factor)
        h = self.conv_in(x)
        for stage in (*self.down, self.mid):
            h = recompute(stage, h, when=self.checkpointing and self.training, random=self.options.dropout > 0)
        return _last(self.norm_out, self.conv_out, h)


class Decoder(nn.Module):
    """Latents to pictures.

    Args:
        options: of the network.
    """

    def __init__(self, options: AutoencoderOptions) -> None:
        super().__init__()
        self.options = options
        self.checkpointing = False
        channels = options.widths[-1]
        self.conv_in = nn.Conv2d(options.latent_channels, channels, 3, padding=1)
        self.mid = Middle(options, channels)
        levels: list[Level] = []
        for level, width in reversed(list(enumerate(options.widths))):
            attention = 2**level in options.attention_resolutions
            levels.append(Level(options, channels, width, options.num_res_blocks + 1, attention, "up" if level else ""))
            channels = width
        self.up = nn.ModuleList(reversed(levels))  # numbered by size, as on the way down
        self.norm_out = options.norm(channels)
        self.conv_out = nn.Conv2d(channels, options.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, out_channels, h * factor, w * factor), in the type of the weights."""
        h = self.conv_in(z)
        for stage in (self.mid, *reversed(self.up)):
            h = recompute(stage, h, when=self.checkpointing and self.training, random=self.options.dropout > 0)
        return _last(self.norm_out, self.conv_out, h)


def _last(norm: nn.Module, conv: nn.Conv2d, h: Tensor) -> Tensor:
    with torch.autocast(h.device.type, enabled=False):  # latents and pictures are not to be rounded
        return conv(F.silu(norm(h.to(conv.weight.dtype))))


class LatentAutoencoder(nn.Module):
    """What the autoencoders of latent diffusion share: both halves, and the scale of what a diffusion is trained on.

    Args:
        options: of both halves.
        moments: channels of what the encoder gives.
        scale_factor: over the latents' standard deviation, so that a diffusion's data have unit size.
    """

    def __init__(self, options: AutoencoderOptions, moments: int, scale_factor: float) -> None:
        super().__init__()
        self.factor = options.factor
        self.scale_factor = scale_factor
        self.encoder = Encoder(options, moments)
        self.decoder = Decoder(options)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = value

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of latents that are not scaled."""
        raise NotImplementedError

    def pictures(self, latents: Tensor) -> Tensor:
        """Pictures of scaled latents."""
        return self.decode(latents / self.scale_factor)

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes the prefix from the names of a latent diffusion checkpoint; names without it stay as they are."""
        return {key.removeprefix("first_stage_model."): value for key, value in state_dict.items()}
