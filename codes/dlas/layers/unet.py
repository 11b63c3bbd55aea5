"""The U-Net of Ho et al. as guided-diffusion and improved-diffusion have it: its blocks, its descending and its ascending half.

Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233), section 3 and appendix B; Nichol
and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (arXiv:2102.09672), appendix A. Layers have the names of
the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.attention import PixelAttention
from dlas.layers.group_norm import GroupNorm, GroupRule
from dlas.layers.padding import pad_to_multiple
from dlas.layers.recompute import recompute
from dlas.layers.spatial_transformer import SpatialTransformer
from dlas.layers.time_embedding import TimeEmbedding
from dlas.layers.zeroed import zeroed


@dataclass(frozen=True)
class UNetOptions:
    """How such a network is built; the fields are options of the registered networks and described there."""

    in_channels: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: Sequence[int]
    dropout: float = 0.0
    channel_mult: Sequence[float] = (1, 2, 4, 8)
    conv_resample: bool = True
    num_classes: int | None = None
    null_class: bool = False
    num_heads: int = 1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    norm_groups: GroupRule = "guided"
    low_precision_norm: bool = False
    context_channels: int | None = None
    transformer_depth: int = 1

    @property
    def embedding_channels(self) -> int:
        """Width of what blocks are told of times and classes."""
        return 4 * self.model_channels

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [int(factor * self.model_channels) for factor in self.channel_mult]

    def norm(self, channels: int) -> GroupNorm:
        """A normalisation."""
        return GroupNorm(channels, self.norm_groups, self.low_precision_norm)

    def block(self, channels: int, out_channels: int, resample: str = "") -> ResBlock:
        """A residual block; `resample` is '', 'down' or 'up'."""
        return ResBlock(self, channels, out_channels, resample)

    def attention(self, channels: int, ascending: bool = False) -> PixelAttention | SpatialTransformer:
        """Attention at a level of so many channels; to a sequence of vectors, too, where the network is told of one."""
        heads = self.num_heads_upsample if ascending and self.num_heads_upsample != -1 else self.num_heads
        if self.num_head_channels != -1:
            if channels % self.num_head_channels:
                raise ValueError(f"{channels} channels are no multiple of num_head_channels ({self.num_head_channels})")
            heads = channels // self.num_head_channels
        if self.context_channels is not None:
            norm = GroupNorm(channels, self.norm_groups, self.low_precision_norm, eps=1e-6)
            more = (self.transformer_depth, self.dropout, self.low_precision_norm)
            return SpatialTransformer(norm, channels, heads, self.context_channels, *more)
        return PixelAttention(self.norm(channels), channels, heads, heads_first=not self.use_new_attention_order)

    def down(self, channels: int) -> nn.Module:
        """What halves a picture between levels."""
        return self.block(channels, channels, "down") if self.resblock_updown else Downsample(channels, self.conv_resample)

    def up(self, channels: int) -> nn.Module:
        """What doubles it."""
        return self.block(channels, channels, "up") if self.resblock_updown else Upsample(channels, self.conv_resample)


class Downsample(nn.Module):
    """Halves a picture: by a convolution of stride 2 (`op`), or by means of 2 x 2 pixels."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H / 2, W / 2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Doubles a picture by repeating pixels, then smooths it by a convolution (`conv`), if asked for."""

    def __init__(self, channels: int, conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, 2 H, 2 W)."""
        return self.conv(double(x))


def double(x: Tensor) -> Tensor:
    """(B, channels, H, W) -> (B, channels, 2 H, 2 W), each pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResBlock(nn.Module):
    """Two convolutions with what is known of time and class between them, in a residual branch that starts at zero.

    Args:
        options: of the network.
        channels: of the input.
        out_channels: of the output.
        resample: '', or where the block resizes its picture: 'down' or 'up'.
    """

    def __init__(self, options: UNetOptions, channels: int, out_channels: int, resample: str = "") -> None:
        super().__init__()
        self.scale_shift = options.use_scale_shift_norm
        self.resample = resample
        told = 2 * out_channels if self.scale_shift else out_channels
        self.in_layers = nn.Sequential(options.norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(options.embedding_channels, told))
        last = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(options.norm(out_channels), nn.SiLU(), nn.Dropout(options.dropout), last)
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, embedding channels) -> (B, out_channels, H', W')."""
        norm, activation, conv = self.in_layers
        h = conv(self._resize(activation(norm(x))))
        told = self.emb_layers(embedding).to(h.dtype)[..., None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + told)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(self._resize(x)) + h

    def _resize(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return double(x) if self.resample == "up" else x


class Stage(nn.ModuleList):
    """Layers one after another, of which residual blocks are told of time and class, and transformers of the context."""

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        skip: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """All layers.

        Args:
            x: (B, C, H, W).
            embedding: (B, E).
            skip: features (B, D, H, W) that are appended to `x` first.
            context: for transformers, (B, S, context channels).
            mask: which vectors of the context are there, (B, S).
        """
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            else:
                x = layer(x, context, mask) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


class DescendingHalf(nn.Module):
    """Time embedding, class embedding, the way down and the middle of a U-Net.

    Args:
        options: of the network.

    Attributes:
        channels: of what the middle gives.
        feature_channels: of what each stage on the way down gives.
        factor: by which pictures are smaller in the middle.
        null_label: the label of no class, for guidance without a classifier; None without `null_class`.

    Raises:
        ValueError: sizes do not go together.
    """

    def __init__(self, options: UNetOptions) -> None:
        super().__init__()
        self.checkpointing = False
        self.options = options
        self.factor = 2 ** (len(options.widths) - 1)
        if options.null_class and options.num_classes is None:
            raise ValueError("null_class adds a class to num_classes, which is not given")
        self.time_embed = TimeEmbedding(options.model_channels)
        self.null_label = options.num_classes if options.null_class else None
        if options.num_classes is not None:
            self.label_emb = nn.Embedding(options.num_classes + options.null_class, options.embedding_channels)

        channels = options.widths[0]
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(options.in_channels, channels, 3, padding=1)])])
        self.feature_channels = [channels]
        for level, out_channels in enumerate(options.widths):
            for _ in range(options.num_res_blocks):
                layers: list[nn.Module] = [options.block(channels, out_channels)]
                channels = out_channels
                if 2**level in options.attention_resolutions:
                    layers.append(options.attention(channels))
                self.input_blocks.append(Stage(layers))
                self.feature_channels.append(channels)
            if level != len(options.widths) - 1:
                self.input_blocks.append(Stage([options.down(channels)]))
                self.feature_channels.append(channels)
        middle = [options.block(channels, channels), options.attention(channels), options.block(channels, channels)]
        self.middle_block = Stage(middle)
        self.channels = channels

    def embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """What blocks are told, (B, E), in the type of the weights, not rounded by autocast.

        Args:
            timesteps: (B,).
            y: classes (B,), integers.

        Raises:
            ValueError: there are classes and `y` is not given, or the other way round.
        """
        if (y is None) != (self.options.num_classes is None):
            fault = "has classes (num_classes) and needs them in y" if y is None else "has no classes (num_classes), but got y"
            raise ValueError(f"the network {fault}")
        embedding: Tensor = self.time_embed(timesteps)
        return embedding if y is None else embedding + self.label_emb(y)

    def descend(self, x: Tensor, embedding: Tensor, *context: Tensor | None, first: Tensor | None = None) -> list[Tensor]:
        """What each stage on the way down gives.

        Args:
            x: (B, in_channels, H, W), H and W multiples of `factor`.
            embedding: (B, E).
            context: of transformers, and its mask, see `Stage.forward`.
            first: what is added to the first features, (B, C, H, W).

        Raises:
            ValueError: H or W is no such multiple.
        """
        check_side("a picture's height", x.shape[-2], self.factor)
        check_side("a picture's width", x.shape[-1], self.factor)
        features: list[Tensor] = []
        for stage in self.input_blocks:
            x = self.run(stage, x, embedding, None, *context)
            if first is not None and not features:
                x = x + first.to(x.dtype)
            features.append(x)
        return features

    def run(self, stage: nn.Module, *inputs: Tensor | None) -> Tensor:
        """A stage's result; its activations are recomputed if the network is to do that."""
        return recompute(stage, *inputs, when=self.checkpointing and self.training, random=self.options.dropout > 0)


class UNet(DescendingHalf):
    """Both halves and the output.

    Args:
        options: of the network.
        out_channels: of the output.
    """

    def __init__(self, options: UNetOptions, out_channels: int) -> None:
        super().__init__(options)
        channels, skips = self.channels, list(self.feature_channels)
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(options.widths))):
            for number in range(options.num_res_blocks + 1):
                layers: list[nn.Module] = [options.block(channels + skips.pop(), width)]
                channels = width
                if 2**level in options.attention_resolutions:
                    layers.append(options.attention(channels, ascending=True))
                if level and number == options.num_res_blocks:
                    layers.append(options.up(channels))
                self.output_blocks.append(Stage(layers))
        last = zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))
        self.out = nn.Sequential(options.norm(channels), nn.SiLU(), last)

    def predict(self, x: Tensor, embedding: Tensor, *context: Tensor | None, first: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W), and more as in `descend` -> (B, out_channels, H, W), in the type of the weights."""
        features = self.descend(x, embedding, *context, first=first)
        h = self.run(self.middle_block, features[-1], embedding, None, *context)
        return self.ascend(h, features, embedding, *context)

    def predict_any_size(self, x: Tensor, embedding: Tensor, first: Tensor | None = None) -> Tensor:
        """As `predict`, for any H and W: pictures are reflected at the bottom and at the right, and the result is cut."""
        height, width = x.shape[-2:]
        if first is not None:
            first = pad_to_multiple(first, self.factor)
        return self.predict(pad_to_multiple(x, self.factor), embedding, first=first)[..., :height, :width]

    def ascend(self, h: Tensor, features: list[Tensor], embedding: Tensor, *context: Tensor | None) -> Tensor:
        """From what the middle gives to the output; `features` are those of `descend` and are used up."""
        for stage in self.output_blocks:
            h = self.run(stage, h, embedding, features.pop(), *context)
        # The torso may be in half precision, but not the result: as published.
        with torch.autocast(h.device.type, enabled=False):
            return self.out(h.to(embedding.dtype))


def enlarge_to(low_res: Tensor, x: Tensor, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """`low_res` (B, C, h, w) at the height and width of `x`, in the type of `x`."""
    # antialias gives the bicubic kernel with which low-resolution pictures are made (a = -0.5) and changes nothing else here.
    return F.interpolate(low_res.to(x.dtype), x.shape[-2:], mode=mode, align_corners=False, antialias=mode == "bicubic")


def check_side(what: str, side: int, factor: int) -> None:
    """Refuses a size that cannot be halved at each level.

    Raises:
        ValueError: it is no multiple of `factor`.
    """
    if side % factor:
        raise ValueError(f"{what} of {side} pixels is no multiple of {factor}, by which the U-Net makes pictures smaller")
