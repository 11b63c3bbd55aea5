"""The magnitude-preserving U-Net of EDM2.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024 (arXiv:2312.02696), configuration
G: section 2, appendix A.1 and figure 21. Layers have the names of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.attention import as_pixels
from dlas.layers.magnitude import MPConv, MPFourier, hold_norms, mp_cat, mp_silu, mp_sum, normalize
from dlas.layers.recompute import recompute
from dlas.layers.unet import check_side, double
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

LIMIT = 256.0
"""Features are kept within plus and minus this; float16 would overflow at 65504."""


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network have in common; the fields are options of `EDM2UNet`."""

    embedding_channels: int
    channels_per_head: int
    dropout: float
    res_balance: float
    attn_balance: float
    low_precision_norm: bool


class MPBlock(nn.Module):
    """A residual block, with attention if asked for, between normalised features (figure 21).

    Args:
        options: of the network.
        channels: of the input.
        out_channels: of the output.
        side: on the way down (`enc`) the input is normalised, and brought to its new width before the residual branch; on the
            way up (`dec`) it is brought there after.
        resample: '', or where the block resizes its picture: 'down' or 'up'.
        attention: whether all pixels attend to all.

    Raises:
        ValueError: heads of attention do not divide the channels.
    """

    def __init__(
        self,
        options: BlockOptions,
        channels: int,
        out_channels: int,
        side: Literal["enc", "dec"],
        resample: str = "",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.side, self.resample = side, resample
        self.res_balance, self.attn_balance = options.res_balance, options.attn_balance
        self.low_precision_norm = options.low_precision_norm
        self.out_channels = out_channels
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if side == "enc" else channels, out_channels, 3)
        self.emb_linear = MPConv(options.embedding_channels, out_channels, None)
        self.dropout = nn.Dropout(options.dropout)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        self.heads = 0
        if attention:
            if out_channels % options.channels_per_head:
                raise ValueError(f"{out_channels} channels are no multiple of channels_per_head ({options.channels_per_head})")
            self.heads = out_channels // options.channels_per_head
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, embedding channels) -> (B, out_channels, H', W')."""
        if self.resample:
            x = F.avg_pool2d(x, 2) if self.resample == "down" else double(x)
        if self.side == "enc":
            x = normalize(self.conv_skip(x), 1, self.low_precision_norm)
        h = self.conv_res0(mp_silu(x))
        told = self.emb_linear(embedding, gain=self.emb_gain) + 1
        h = mp_silu(h * told.to(h.dtype)[..., None, None])
        h = self.conv_res1(self.dropout(h))
        if self.side == "dec":
            x = self.conv_skip(x)
        x = mp_sum(x, h, self.res_balance)
        if self.heads:
            x = mp_sum(x, self._attend(x), self.attn_balance)
        return x.clamp(-LIMIT, LIMIT)

    def _attend(self, x: Tensor) -> Tensor:
        # Channels are ordered as (head, channel, q/k/v). Queries, keys and values all have unit magnitude.
        qkv = as_pixels(self.attn_qkv(x)).unflatten(-1, (self.heads, -1, 3))
        q, k, v = normalize(qkv, 3, self.low_precision_norm).permute(4, 0, 2, 1, 3).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.attn_proj(seen.transpose(1, 2).unflatten(2, x.shape[2:]))


@ARCHS.register("edm2_unet")
class EDM2UNet(nn.Module):
    """U-Net without biases and groups, of normalised weights and features; for `process: {type: edm}` and `prediction: edm`.

    In training the weights are brought back to unit magnitude before each step, in place. A network with `model_channels` 128
    is EDM2-XS, 192 S, 256 M, 320 L, 384 XL, 448 XXL.

    Args:
        image_size: height and width of the pictures, divisible as often as the network halves them; names of layers are made of
            it. Pictures of others are taken, too, if they are so divisible.
        in_channels: channels of a picture; 4 for Stable Diffusion's latents.
        out_channels: channels of the output.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        num_blocks: residual blocks a level on the way down; on the way up there is one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention.
        channels_per_head: of attention.
        num_classes: how many classes `y` may name; without it there is no `y`. The class of number `num_classes` (the attribute
            `null_label`) is none, for guidance; it needs no weights.
        dropout: probability with which features are dropped within residual blocks.
        label_balance: share of the class, beside the noise level, in what blocks are told.
        concat_balance: share of the features from the way down where they are joined on the way up.
        res_balance: share of a residual branch.
        attn_balance: share of attention.
        low_precision_norm: under autocast, normalise features in their precision in place of float32.

    Raises:
        ValueError: sizes do not go together.

    Source: Karras et al. 2024 (arXiv:2312.02696), configuration G.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt = 64,
        in_channels: PositiveInt = 3,
        out_channels: PositiveInt = 3,
        model_channels: PositiveInt = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: PositiveInt = 3,
        attention_resolutions: Sequence[int] = (4, 8),
        channels_per_head: PositiveInt = 64,
        num_classes: PositiveInt | None = None,
        dropout: Fraction = 0.0,
        label_balance: Fraction = 0.5,
        concat_balance: Fraction = 0.5,
        res_balance: Fraction = 0.3,
        attn_balance: Fraction = 0.3,
        low_precision_norm: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = False
        widths = [factor * model_channels for factor in channel_mult]
        self.factor = 2 ** (len(widths) - 1)
        check_side("image_size", image_size, self.factor)
        self.null_label = self.num_classes = num_classes
        self.label_balance, self.concat_balance, self.dropout = label_balance, concat_balance, dropout
        told = max(widths)
        self.emb_fourier = MPFourier(widths[0])
        self.emb_noise = MPConv(widths[0], told, None)
        if num_classes is not None:
            self.emb_label = MPConv(num_classes, told, None)
        options = BlockOptions(told, channels_per_head, dropout, res_balance, attn_balance, low_precision_norm)

        self.enc = nn.ModuleDict()
        channels = widths[0]
        skips = []
        for level, width in enumerate(widths):
            name = f"{image_size >> level}x{image_size >> level}"
            attention = 2**level in attention_resolutions
            if level == 0:
                self.enc[f"{name}_conv"] = MPConv(in_channels + 1, channels, 3)
            else:
                self.enc[f"{name}_down"] = MPBlock(options, channels, channels, "enc", "down")
            skips.append(channels)
            for number in range(num_blocks):
                self.enc[f"{name}_block{number}"] = MPBlock(options, channels, width, "enc", attention=attention)
                channels = width
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, width in reversed(list(enumerate(widths))):
            name = f"{image_size >> level}x{image_size >> level}"
            attention = 2**level in attention_resolutions
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = MPBlock(options, channels, channels, "dec", attention=True)
                self.dec[f"{name}_in1"] = MPBlock(options, channels, channels, "dec")
            else:
                self.dec[f"{name}_up"] = MPBlock(options, channels, channels, "dec", "up")
            for number in range(num_blocks + 1):
                joined = channels + skips.pop()
                self.dec[f"{name}_block{number}"] = MPBlock(options, joined, width, "dec", attention=attention)
                channels = width
        self.out_conv = MPConv(channels, out_channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures of about unit variance, (B, in_channels, H, W); H and W can be halved at each level.
            timesteps: c_noise, ln(sigma) / 4 for `process: {type: edm}`, (B,).
            y: classes (B,), integers up to and with `num_classes`; given if and only if there are classes.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.
        """
        check_side("a picture's height", x.shape[-2], self.factor)
        check_side("a picture's width", x.shape[-1], self.factor)
        if self.training and torch.is_grad_enabled():
            hold_norms(self.modules())
        embedding = self.embed(timesteps, y)
        x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)  # takes the place of biases
        features = []
        for block in self.enc.values():
            x = block(x) if isinstance(block, MPConv) else self._run(block, x, embedding)
            features.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, features.pop(), self.concat_balance)
            x = self._run(block, x, embedding)
        with torch.autocast(x.device.type, enabled=False):
            return self.out_conv(x.to(self.out_conv.weight.dtype), gain=self.out_gain)

    def embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """What blocks are told, (B, E), in the type of the weights, not rounded by autocast.

        Raises:
            ValueError: there are classes and `y` is not given, or the other way round.
        """
        if (y is None) != (self.num_classes is None):
            fault = "has classes (num_classes) and needs them in y" if y is None else "has no classes (num_classes), but got y"
            raise ValueError(f"the network {fault}")
        with torch.autocast(timesteps.device.type, enabled=False):
            embedding: Tensor = self.emb_noise(self.emb_fourier(timesteps))
            if y is not None and self.num_classes is not None:
                one_hot = (y[:, None] == torch.arange(self.num_classes, device=y.device)).to(embedding.dtype)
                embedding = mp_sum(embedding, self.emb_label(one_hot * self.num_classes**0.5), self.label_balance)
            return mp_silu(embedding)

    def _run(self, block: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        return recompute(block, x, embedding, when=self.checkpointing and self.training, random=self.dropout > 0)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"image_size": 8, "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "channels_per_head": 4}
        more = {"attention_resolutions": [2], "num_classes": 3}
        return options | more, (torch.randn(2, 3, 8, 12), torch.tensor([-1.5, 0.9]), torch.tensor([2, 3]))
