"""Latents of images, learned without labels: two views of one image are nearer to each other than to those of other images.

The transformer: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv:2010.11929), section 3.1. The task: Chen
et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (arXiv:2002.05709), section 2. A head
that ends in batch normalisation: Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV
2021 (arXiv:2104.02057).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.contrastive import contrastive_loss
from dlas.layers.positions import sine_positions
from dlas.layers.recompute import recompute
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveFloat, PositiveInt

LARGEST_SCALE = 100.0


@ARCHS.register("vit_latent")
class ViTLatent(nn.Module):
    """A vision transformer for latents: `{type: generator, in: [aug1, aug2], out: loss}`, and `direct` of `loss`.

    Each image of the micro-batch is told from the others of it, of all processes: a larger `mega_batch_factor` makes the task
    easier, not only the memory smaller. Lower memory by `checkpointing_enabled` first. Behind the projection, batch
    normalisation without weights takes away what all images have in common, which would keep their latents alike for long.

    Args:
        top_dim: length of latents.
        hidden_dim: channels of the transformer, a multiple of 4 and of `num_heads`.
        depth: its blocks.
        dropout: probability of dropping an entry of attention and of each branch.
        num_heads: heads of attention.
        patch_size: height and width of the patches, in pixels; those of images are multiples of it.
        temperature: that cosines are over at first; it is learned, and stays above 0.01.

    Raises:
        ValueError: `hidden_dim` is no such multiple.
    """

    brings_together = True

    def __init__(
        self,
        *,
        top_dim: PositiveInt,
        hidden_dim: PositiveInt,
        depth: PositiveInt,
        dropout: Fraction = 0.1,
        num_heads: PositiveInt = 8,
        patch_size: PositiveInt = 16,
        temperature: PositiveFloat = 0.2,
    ) -> None:
        super().__init__()
        if hidden_dim % 4 or hidden_dim % num_heads:
            raise ValueError(f"hidden_dim must be a multiple of 4 and of num_heads, {num_heads}; got {hidden_dim}")
        self.checkpointing = False
        self.patch_size = patch_size
        self.patches = nn.Conv2d(3, hidden_dim, patch_size, patch_size)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_dim, num_heads, 4 * hidden_dim, dropout, F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.projection = nn.Linear(hidden_dim, top_dim, bias=False)
        self.center = nn.BatchNorm1d(top_dim, affine=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """The contrastive loss of two views of each image, a scalar in float32; telling nothing apart costs log B.

        Args:
            one: (B, 3, H, W), the first views.
            two: the second views, image by image.

        Raises:
            ValueError: the views differ in shape, their sides are no multiples of `patch_size`, or in training there is but one
                image, which has none to be told from.
        """
        if one.shape != two.shape:
            raise ValueError(f"vit_latent: views must be of one shape, got {tuple(one.shape)} and {tuple(two.shape)}")
        if self.training and len(one) < 2:
            raise ValueError("vit_latent: a micro-batch of one image teaches nothing; it must have 2 or more")
        first, second = self.latents(torch.cat((one, two))).chunk(2)
        return contrastive_loss(first, second, self.log_scale.clamp(max=math.log(LARGEST_SCALE)))

    def latents(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, top_dim), of unit length, in float32.

        Raises:
            ValueError: the sides are no multiples of `patch_size`.
        """
        if any(side % self.patch_size for side in pictures.shape[-2:]):
            raise ValueError(
                f"vit_latent: sides must be multiples of patch_size, {self.patch_size}; got pictures {tuple(pictures.shape)}"
            )
        patches = self.patches(pictures)
        x = patches.flatten(2).transpose(1, 2)
        x = x + sine_positions(patches.shape[2], patches.shape[3], patches.shape[1], patches.device)
        for block in self.blocks:
            x = recompute(block, x, when=self.checkpointing and self.training, random=True)
        return F.normalize(self.center(self.projection(self.norm(x).mean(1)).float()), dim=-1)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"top_dim": 4, "hidden_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4}
        return options, (torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8))
