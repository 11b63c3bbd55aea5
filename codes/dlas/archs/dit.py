"""The diffusion transformer.

Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023 (arXiv:2212.09748), with adaLN-Zero blocks (section
3.2 and figure 3). Layers have the names of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.attention import as_pixels, split_heads
from dlas.layers.positions import sine_positions
from dlas.layers.recompute import recompute
from dlas.layers.time_embedding import timestep_embedding
from dlas.layers.token_norm import TokenNorm
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveFloat, PositiveInt

TIME_CHANNELS = 256
"""Waves of which the time embedding is made."""


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network have in common; the fields are options of `DiT`."""

    channels: int
    heads: int
    mlp_ratio: float
    mlp: Literal["gelu", "swiglu"]
    norm: Literal["layer", "rms"]
    qk_norm: bool
    dropout: float
    low_precision_norm: bool

    def plain_norm(self) -> TokenNorm:
        """A normalisation without weights; what it would learn is told by time and class."""
        return TokenNorm(self.channels, self.norm, affine=False, low_precision=self.low_precision_norm, eps=1e-6)


class TokenAttention(nn.Module):
    """Attention of all tokens to all, with queries, keys and values in one projection."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.heads = options.heads
        width = options.channels // options.heads
        self.qkv = nn.Linear(options.channels, 3 * options.channels)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if options.qk_norm:
            self.q_norm = TokenNorm(width, options.norm, low_precision=options.low_precision_norm, eps=1e-6)
            self.k_norm = TokenNorm(width, options.norm, low_precision=options.low_precision_norm, eps=1e-6)
        self.proj = nn.Linear(options.channels, options.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> the same shape."""
        q, k, v = split_heads(self.qkv(x), self.heads, heads_first=False)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between them, for each token; its tanh form, as published."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        hidden = int(options.channels * options.mlp_ratio)
        self.fc1 = nn.Linear(options.channels, hidden)
        self.fc2 = nn.Linear(hidden, options.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> the same shape."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """Two linear layers with a gate between them, narrower by a third so that there are as many weights as in `Mlp`.

    Source: Shazeer 2020 (arXiv:2002.05202).
    """

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        hidden = -(-int(options.channels * options.mlp_ratio * 2 / 3) // 8) * 8
        self.fc1 = nn.Linear(options.channels, 2 * hidden)
        self.fc2 = nn.Linear(hidden, options.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, channels) -> the same shape."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Block(nn.Module):
    """Attention and an MLP in residual branches, which time and class shift, scale and gate; the gates start at zero."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.norm1 = options.plain_norm()
        self.attn = TokenAttention(options)
        self.norm2 = options.plain_norm()
        self.mlp = Mlp(options) if options.mlp == "gelu" else SwiGLU(options)
        self.dropout = nn.Dropout(options.dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(options.channels, 6 * options.channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, T, channels) and (B, channels) -> (B, T, channels)."""
        told = self.adaLN_modulation(embedding)[:, None].chunk(6, dim=2)
        shift1, scale1, gate1, shift2, scale2, gate2 = told
        x = x + gate1 * self.dropout(self.attn(modulate(self.norm1(x), shift1, scale1)))
        return x + gate2 * self.dropout(self.mlp(modulate(self.norm2(x), shift2, scale2)))


class PatchEmbedding(nn.Module):
    """Patches of a picture as tokens."""

    def __init__(self, in_channels: int, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, H / patch * W / patch, channels)."""
        return as_pixels(self.proj(x))


class TimestepEmbedder(nn.Module):
    """Waves of the time and two linear layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, last = nn.Linear(TIME_CHANNELS, channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, times: Tensor) -> Tensor:
        """(B,) -> (B, channels)."""
        return self.mlp(timestep_embedding(times, TIME_CHANNELS).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """A vector for each class."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, channels)

    def forward(self, y: Tensor) -> Tensor:
        """(B,) -> (B, channels)."""
        return self.embedding_table(y)


class FinalLayer(nn.Module):
    """Normalised tokens, shifted and scaled, as patches; starts at zero."""

    def __init__(self, options: BlockOptions, numbers: int) -> None:
        super().__init__()
        self.norm_final = options.plain_norm()
        self.linear = nn.Linear(options.channels, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(options.channels, 2 * options.channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, T, channels) and (B, channels) -> (B, T, numbers of a patch)."""
        shift, scale = self.adaLN_modulation(embedding)[:, None].chunk(2, dim=2)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens (B, T, C), scaled and shifted by (B, 1, C) each."""
    return torch.addcmul(shift.to(x.dtype), x, 1 + scale.to(x.dtype))


@ARCHS.register("dit")
class DiT(nn.Module):
    """Transformer over the patches of a noisy picture, or of latents; the defaults are DiT-XL/2 without its classes.

    DiT-S has 384 channels, 12 blocks and 6 heads; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16. The published networks have
    `num_classes: 1000`, `null_class: true` and, since they learn the variance, `out_channels: 8`. They start as zero.

    Args:
        image_size: height and width for which positions are kept with the weights. Pictures of others are taken, too: their
            positions go on counting.
        patch_size: height and width of a patch, which divides those of the pictures.
        in_channels: channels of a picture; 4 for Stable Diffusion's latents.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        hidden_size: channels of a token, a multiple of 4.
        depth: blocks.
        num_heads: heads of attention; divides `hidden_size`.
        mlp_ratio: hidden channels of a block's MLP, in `hidden_size`.
        num_classes: how many classes `y` may name; without it there is no `y`.
        null_class: one more class, of number `num_classes` (the attribute `null_label`), that stands for none: for guidance
            without a classifier.
        dropout: probability with which results of attention and MLP are dropped.
        mlp: `gelu`, as published, or `swiglu`, of about as many weights.
        norm: `layer`, as published, or `rms`.
        qk_norm: normalise queries and keys, which keeps attention from growing without bound.
        low_precision_norm: under autocast, normalise in its precision in place of float32.

    Raises:
        ValueError: sizes do not go together.

    Source: Peebles and Xie 2023 (arXiv:2212.09748), table 1; `qk_norm`: Dehghani et al. 2023 (arXiv:2302.05442), section 2.
    """

    constants = r"pos_embed"

    pos_embed: Tensor

    def __init__(
        self,
        *,
        image_size: PositiveInt = 32,
        patch_size: PositiveInt = 2,
        in_channels: PositiveInt = 4,
        out_channels: PositiveInt = 4,
        hidden_size: PositiveInt = 1152,
        depth: PositiveInt = 28,
        num_heads: PositiveInt = 16,
        mlp_ratio: PositiveFloat = 4.0,
        num_classes: PositiveInt | None = None,
        null_class: bool = False,
        dropout: Fraction = 0.0,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        norm: Literal["layer", "rms"] = "layer",
        qk_norm: bool = False,
        low_precision_norm: bool = False,
    ) -> None:
        super().__init__()
        check_patches("image_size", image_size, patch_size)
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"hidden_size ({hidden_size}) must be a multiple of num_heads ({num_heads}) and of 4")
        if null_class and num_classes is None:
            raise ValueError("null_class adds a class to num_classes, which is not given")
        self.checkpointing = False
        self.patch_size, self.channels, self.dropout = patch_size, hidden_size, dropout
        self.grid = image_size // patch_size
        self.num_classes = num_classes
        self.null_label = num_classes if null_class else None
        options = BlockOptions(hidden_size, num_heads, mlp_ratio, mlp, norm, qk_norm, dropout, low_precision_norm)
        self.x_embedder = PatchEmbedding(in_channels, hidden_size, patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        if num_classes is not None:
            self.y_embedder = LabelEmbedder(num_classes + null_class, hidden_size)
        self.register_buffer("pos_embed", sine_positions(self.grid, self.grid, hidden_size)[None])
        self.blocks = nn.ModuleList(Block(options) for _ in range(depth))
        self.final_layer = FinalLayer(options, patch_size**2 * out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """Glorot's for linear layers, small embeddings, and zeros where branches and the output are gated."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.channels, -1))
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        embedders = [self.t_embedder] if self.num_classes is None else [self.t_embedder, self.y_embedder]
        for name, weight in nn.ModuleList(embedders).named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(weight, std=0.02)
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, in_channels, H, W); H and W are multiples of `patch_size`.
            timesteps: (B,), whole or not.
            y: classes (B,), integers; given if and only if there are `num_classes`.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.

        Raises:
            ValueError: H or W is no such multiple, there are classes and `y` is not given, or the other way round.
        """
        check_patches("a picture's height", x.shape[-2], self.patch_size)
        check_patches("a picture's width", x.shape[-1], self.patch_size)
        height, width = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        embedding = self.embed(timesteps, y)
        # The stream that all blocks add to is in the type of the weights, as the positions are.
        tokens = self.x_embedder(x) + self._positions(height, width)
        for block in self.blocks:
            when = self.checkpointing and self.training
            tokens = recompute(block, tokens, embedding, when=when, random=self.dropout > 0)
        with torch.autocast(x.device.type, enabled=False):
            patches = self.final_layer(tokens.to(embedding.dtype), embedding)
        side = self.patch_size
        # (B, rows of patches, columns of patches, row in a patch, column in a patch, channel)
        patches = patches.unflatten(2, (side, side, -1)).unflatten(1, (height, width))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def embed(self, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """What blocks are told, (B, hidden_size), in the type of the weights, not rounded by autocast.

        Raises:
            ValueError: there are classes and `y` is not given, or the other way round.
        """
        if (y is None) != (self.num_classes is None):
            fault = "has classes (num_classes) and needs them in y" if y is None else "has no classes (num_classes), but got y"
            raise ValueError(f"the network {fault}")
        with torch.autocast(timesteps.device.type, enabled=False):
            embedding: Tensor = self.t_embedder(timesteps)
            return embedding if y is None else embedding + self.y_embedder(y)

    def _positions(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        return sine_positions(height, width, self.channels, self.pos_embed.device)[None].to(self.pos_embed.dtype)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"image_size": 8, "in_channels": 3, "out_channels": 6, "hidden_size": 16, "depth": 2, "num_heads": 2}
        more = {"num_classes": 3, "null_class": True}
        return options | more, (torch.randn(2, 3, 8, 12), torch.tensor([3, 700]), torch.tensor([2, 3]))


def check_patches(what: str, side: int, patch: int) -> None:
    """Refuses a size that is not made of whole patches.

    Raises:
        ValueError: it is no multiple of `patch`.
    """
    if side % patch:
        raise ValueError(f"{what} of {side} pixels is no multiple of patch_size ({patch})")
