"""The classifier of noisy pictures of guided-diffusion: the descending half of its U-Net, and a head.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021 (arXiv:2105.05233), section 4 and appendix H;
the pooling by attention: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021
(arXiv:2103.00020), section 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.layers.attention import AttentionPool
from dlas.layers.unet import DescendingHalf, UNetOptions, check_side
from dlas.layers.zeroed import zeroed
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt

SPATIAL_WIDTH = 2048
"""Width of the heads that see the mean of every stage."""


@ARCHS.register("guided_classifier")
class GuidedClassifier(DescendingHalf):
    """Classifier of noisy pictures; the defaults are the published one for 64 pixels.

    Args:
        image_size: height and width of the pictures, divisible as often as the network halves them; `pool: attention` takes
            pictures of this size alone.
        in_channels: channels of a picture.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        out_channels: number of classes, or of whatever numbers are wanted of a picture.
        num_res_blocks: residual blocks a level.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention.
        dropout: probability with which features are dropped within residual blocks.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        conv_resample: convolve when resizing between levels.
        num_heads: heads of attention.
        num_head_channels: channels of a head, in place of the number of heads; -1: `num_heads` counts.
        use_scale_shift_norm: times scale and shift normalised features; otherwise they are added before.
        resblock_updown: resize within residual blocks.
        use_new_attention_order: channels of attention's projection are ordered as (q/k/v, head, channel), not as
            (head, q/k/v, channel). The attention of `pool` always has the former.
        pool: how a vector is made of a picture: the mean of the last features (`adaptive`), attention of that mean to them
            (`attention`, needs `num_head_channels`), or two layers that see the means of all stages (`spatial`; with
            normalisation and SiLU in place of ReLU: `spatial_v2`).
        norm_groups: groups of normalisation: 32 (`guided`), or fewer for up to 64 channels (`dlas`).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.

    Raises:
        ValueError: sizes do not go together, or `pool` is not one of those named.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt = 64,
        in_channels: PositiveInt = 3,
        model_channels: PositiveInt = 128,
        out_channels: PositiveInt = 1000,
        num_res_blocks: PositiveInt = 4,
        attention_resolutions: Sequence[int] = (2, 4, 8),
        dropout: Fraction = 0.0,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        conv_resample: bool = True,
        num_heads: PositiveInt = 1,
        num_head_channels: int = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        use_new_attention_order: bool = False,
        pool: Literal["adaptive", "attention", "spatial", "spatial_v2"] = "attention",
        norm_groups: Literal["guided", "dlas"] = "guided",
        low_precision_norm: bool = False,
    ) -> None:
        options = UNetOptions(
            in_channels=in_channels,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            channel_mult=channel_mult,
            conv_resample=conv_resample,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            norm_groups=norm_groups,
            low_precision_norm=low_precision_norm,
        )
        super().__init__(options)
        check_side("image_size", image_size, self.factor)
        self.sees_all_stages = pool.startswith("spatial")
        seen = sum(self.feature_channels) + self.channels
        if pool == "adaptive":
            last = zeroed(nn.Conv2d(self.channels, out_channels, 1))
            head: list[nn.Module] = [options.norm(self.channels), nn.SiLU(), nn.AdaptiveAvgPool2d(1), last, nn.Flatten()]
        elif pool == "attention":
            if num_head_channels < 1 or self.channels % num_head_channels:
                raise ValueError(
                    f"pool 'attention' needs num_head_channels, a divisor of the last level's {self.channels} channels; "
                    f"got {num_head_channels}"
                )
            heads = self.channels // num_head_channels
            attention = AttentionPool(image_size // self.factor, self.channels, heads, out_channels)
            head = [options.norm(self.channels), nn.SiLU(), attention]
        elif pool == "spatial":
            head = [nn.Linear(seen, SPATIAL_WIDTH), nn.ReLU(), nn.Linear(SPATIAL_WIDTH, out_channels)]
        elif pool == "spatial_v2":
            norm = options.norm(SPATIAL_WIDTH)
            head = [nn.Linear(seen, SPATIAL_WIDTH), norm, nn.SiLU(), nn.Linear(SPATIAL_WIDTH, out_channels)]
        else:
            raise ValueError(f"pool must be one of adaptive, attention, spatial, spatial_v2, got {pool!r}")
        self.out = nn.Sequential(*head)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Classifies.

        Args:
            x: noisy pictures, (B, in_channels, H, W); H and W can be halved at each level.
            timesteps: (B,), whole or not.

        Returns:
            Logits (B, out_channels), in the type of the weights under autocast, too.
        """
        embedding = self.embed(timesteps)
        features = self.descend(x, embedding)
        features.append(self.run(self.middle_block, features[-1], embedding))
        with torch.autocast(x.device.type, enabled=False):
            if self.sees_all_stages:
                return self.out(torch.cat([feature.to(embedding.dtype).mean((2, 3)) for feature in features], dim=1))
            return self.out(features[-1].to(embedding.dtype))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"image_size": 8, "model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2], "out_channels": 5}
        more = {"attention_resolutions": [2], "num_head_channels": 8, "norm_groups": "dlas"}
        return options | more, (torch.randn(2, 3, 8, 8), torch.tensor([3, 700]))
