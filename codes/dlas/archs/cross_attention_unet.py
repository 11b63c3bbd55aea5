"""A U-Net that is told of a sequence of vectors, such as the embedding of a text: latent diffusion's.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022 (arXiv:2112.10752), section 3.3. It is
`dlas.layers.unet` with transformer blocks in place of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dlas.layers.unet import UNet, UNetOptions, check_side
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt


@ARCHS.register("cross_attention_unet")
class CrossAttentionUNet(UNet):
    """U-Net whose pixels attend to a sequence of vectors; the defaults are Stable Diffusion 1's.

    Weights have the names of latent diffusion's checkpoints; the prefix of theirs is passed over.

    Args:
        image_size: height and width of the pictures, divisible as often as the network halves them. Others are taken,
            too, if they are so divisible.
        in_channels: channels of a picture; 4 for Stable Diffusion's latents.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        num_res_blocks: residual blocks a level on the way down; on the way up there is one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have transformers.
        context_channels: channels of the vectors.
        transformer_depth: blocks of a transformer.
        dropout: probability with which features are dropped within blocks.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        conv_resample: convolve when resizing between levels.
        num_classes: how many classes `y` may name; without it there is no `y`.
        null_class: one more class, of number `num_classes` (the attribute `null_label`), that stands for none: for guidance
            without a classifier.
        num_heads: heads of attention.
        num_head_channels: channels of a head, in place of the number of heads; -1: `num_heads` counts.
        use_scale_shift_norm: times and classes scale and shift normalised features; otherwise they are added before.
        resblock_updown: resize within residual blocks.
        norm_groups: groups of normalisation: 32 (`guided`), or fewer for up to 64 channels (`dlas`).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.

    Raises:
        ValueError: sizes do not go together.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt | None = None,
        in_channels: PositiveInt = 4,
        model_channels: PositiveInt = 320,
        out_channels: PositiveInt = 4,
        num_res_blocks: PositiveInt = 2,
        attention_resolutions: Sequence[int] = (1, 2, 4),
        context_channels: PositiveInt = 768,
        transformer_depth: PositiveInt = 1,
        dropout: Fraction = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 4),
        conv_resample: bool = True,
        num_classes: PositiveInt | None = None,
        null_class: bool = False,
        num_heads: PositiveInt = 8,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
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
            num_classes=num_classes,
            null_class=null_class,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            norm_groups=norm_groups,
            low_precision_norm=low_precision_norm,
            context_channels=context_channels,
            transformer_depth=transformer_depth,
        )
        super().__init__(options, out_channels)
        self.context_channels = context_channels
        if image_size is not None:
            check_side("image_size", image_size, self.factor)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, mask: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, in_channels, H, W); H and W can be halved at each level.
            timesteps: (B,), whole or not.
            context: the vectors, (B, S, context_channels).
            mask: which of them are there, (B, S), true or other than 0; a picture without any sees zeros. None for all.
            y: classes (B,), integers; given if and only if there are `num_classes`.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.

        Raises:
            ValueError: the context has another number of channels, or other sizes are wrong.
        """
        if context.dim() != 3 or context.shape[2] != self.context_channels:
            raise ValueError(f"context must be (B, S, {self.context_channels}) (context_channels), got {tuple(context.shape)}")
        return self.predict(x, self.embed(timesteps, y), context, mask)

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes the prefix from the names of a latent diffusion checkpoint; names without it stay as they are."""
        return {key.removeprefix("model.diffusion_model."): value for key, value in state_dict.items()}

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"in_channels": 3, "out_channels": 3, "model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2]}
        more = {"attention_resolutions": [2], "context_channels": 6, "num_heads": 2, "norm_groups": "dlas", "num_classes": 3}
        mask = torch.tensor([[True, True, False], [True, True, True]])
        inputs = (torch.randn(2, 3, 8, 12), torch.tensor([3, 700]), torch.randn(2, 3, 6), mask, torch.tensor([2, 0]))
        return options | more, inputs
