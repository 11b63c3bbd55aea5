"""The U-Nets of guided-diffusion and improved-diffusion, for pictures from noise and for super-resolution.

Both projects' networks are one function: improved-diffusion's lacks the options `resblock_updown`, `num_head_channels` and
`use_new_attention_order`. See `dlas.layers.unet`.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (arXiv:2006.11239), appendix B; Nichol and Dhariwal,
"Improved Denoising Diffusion Probabilistic Models", ICML 2021 (arXiv:2102.09672), appendix A; Dhariwal and Nichol, "Diffusion
Models Beat GANs on Image Synthesis", NeurIPS 2021 (arXiv:2105.05233), section 3 and appendix B. That a low-resolution picture
is shown beside the noisy one: Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021 (arXiv:2104.07636).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.layers.rrdb import RRDBTrunk
from dlas.layers.unet import UNet, UNetOptions, check_side, enlarge_to
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt


@ARCHS.register("guided_unet", "improved_unet")
class GuidedUNet(UNet):
    """U-Net that predicts noise (or data, or velocity) of noisy pictures; the defaults are a small one for 64 pixels.

    Args:
        image_size: height and width of the pictures, divisible as often as the network halves them. Others are taken,
            too, if they are so divisible.
        in_channels: channels of a picture.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        num_res_blocks: residual blocks a level on the way down; on the way up there is one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention: 8 at 256 pixels means
            features of 32 pixels (scripts of guided-diffusion are given the 32).
        dropout: probability with which features are dropped within residual blocks.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        conv_resample: convolve when resizing between levels.
        num_classes: how many classes `y` may name; without it there is no `y`.
        null_class: one more class, of number `num_classes` (the attribute `null_label`), that stands for none: for guidance
            without a classifier.
        num_heads: heads of attention.
        num_head_channels: channels of a head, in place of the number of heads; -1: `num_heads` counts.
        num_heads_upsample: heads on the way up; -1: as many as on the way down.
        use_scale_shift_norm: times and classes scale and shift normalised features; otherwise they are added before.
        resblock_updown: resize within residual blocks.
        use_new_attention_order: channels of attention's projection are ordered as (q/k/v, head, channel), not as
            (head, q/k/v, channel). Weights of both orders have one shape; of the published networks only guided-diffusion's for
            64 pixels has the new one.
        norm_groups: groups of normalisation: 32 (`guided`), or fewer for up to 64 channels (`dlas`).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.

    Raises:
        ValueError: sizes do not go together.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt | None = None,
        in_channels: PositiveInt = 3,
        model_channels: PositiveInt = 128,
        out_channels: PositiveInt = 3,
        num_res_blocks: PositiveInt = 2,
        attention_resolutions: Sequence[int] = (4, 8),
        dropout: Fraction = 0.0,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        conv_resample: bool = True,
        num_classes: PositiveInt | None = None,
        null_class: bool = False,
        num_heads: PositiveInt = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
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
            num_heads_upsample=num_heads_upsample,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            norm_groups=norm_groups,
            low_precision_norm=low_precision_norm,
        )
        super().__init__(options, out_channels)
        if image_size is not None:
            check_side("image_size", image_size, self.factor)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, in_channels, H, W); H and W can be halved at each level.
            timesteps: (B,), whole or not.
            y: classes (B,), integers; given if and only if there are `num_classes`.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.
        """
        return self.predict(x, self.embed(timesteps, y))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [2]}
        more = {"num_heads": 2, "resblock_updown": True, "use_scale_shift_norm": True, "norm_groups": "dlas"}
        return options | more, (torch.randn(2, 3, 12, 8), torch.tensor([3, 700]))


@ARCHS.register("guided_superres", "improved_superres")
class GuidedSuperRes(UNet):
    """U-Net that is shown a low-resolution picture, enlarged, beside the noisy one, or told of features of it.

    Args:
        image_size: height and width of the large pictures, divisible as often as the network halves them; others are
            taken, too.
        in_channels: channels of a picture; the first convolution has twice as many, but with `conditioning: rrdb`.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        num_res_blocks: residual blocks a level on the way down; on the way up there is one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention: 8 at 256 pixels means
            features of 32 pixels (scripts of guided-diffusion are given the 32).
        dropout: probability with which features are dropped within residual blocks.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        conv_resample: convolve when resizing between levels.
        num_classes: how many classes `y` may name; without it there is no `y`.
        null_class: one more class, of number `num_classes` (the attribute `null_label`), that stands for none: for guidance
            without a classifier.
        num_heads: heads of attention.
        num_head_channels: channels of a head, in place of the number of heads; -1: `num_heads` counts.
        num_heads_upsample: heads on the way up; -1: as many as on the way down.
        use_scale_shift_norm: times and classes scale and shift normalised features; otherwise they are added before.
        resblock_updown: resize within residual blocks.
        use_new_attention_order: channels of attention's projection are ordered as (q/k/v, head, channel), not as
            (head, q/k/v, channel).
        norm_groups: groups of normalisation: 32 (`guided`), or fewer for up to 64 channels (`dlas`).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.
        conditioning: how the low-resolution picture is shown: enlarged `bilinear`ly, as published by guided-diffusion, or
            `bicubic`ally, as in SR3; or its features by ESRGAN's trunk (`rrdb`), enlarged and added to the first ones, as in
            SRDiff.
        rrdb_channels: channels of these features.
        rrdb_blocks: residual-in-residual blocks of which they are made.
        rrdb_growth: channels that each convolution of their dense blocks adds.

    Raises:
        ValueError: sizes do not go together, or `conditioning` is none of those named.

    Source: Saharia et al. 2021 (arXiv:2104.07636), section 2.1; Li et al. 2022, "SRDiff: Single Image Super-Resolution with
    Diffusion Probabilistic Models" (arXiv:2104.14951), section 3.3.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt | None = None,
        in_channels: PositiveInt = 3,
        model_channels: PositiveInt = 192,
        out_channels: PositiveInt = 3,
        num_res_blocks: PositiveInt = 2,
        attention_resolutions: Sequence[int] = (8, 16),
        dropout: Fraction = 0.0,
        channel_mult: Sequence[float] = (1, 1, 2, 2, 4, 4),
        conv_resample: bool = True,
        num_classes: PositiveInt | None = None,
        null_class: bool = False,
        num_heads: PositiveInt = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        norm_groups: Literal["guided", "dlas"] = "guided",
        low_precision_norm: bool = False,
        conditioning: Literal["bilinear", "bicubic", "rrdb"] = "bilinear",
        rrdb_channels: PositiveInt = 64,
        rrdb_blocks: PositiveInt = 8,
        rrdb_growth: PositiveInt = 32,
    ) -> None:
        if conditioning not in ("bilinear", "bicubic", "rrdb"):
            raise ValueError(f"conditioning must be 'bilinear', 'bicubic' or 'rrdb', got {conditioning!r}")
        options = UNetOptions(
            in_channels=in_channels if conditioning == "rrdb" else 2 * in_channels,
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
            num_heads_upsample=num_heads_upsample,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            use_new_attention_order=use_new_attention_order,
            norm_groups=norm_groups,
            low_precision_norm=low_precision_norm,
        )
        super().__init__(options, out_channels)
        if image_size is not None:
            check_side("image_size", image_size, self.factor)
        self.conditioning = conditioning
        if conditioning == "rrdb":
            self.low_res_encoder = RRDBTrunk(in_channels, rrdb_channels, rrdb_blocks, rrdb_growth)
            self.low_res_proj = nn.Conv2d(rrdb_channels, options.widths[0], 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, low_res: Tensor, y: Tensor | None = None) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, in_channels, H, W); reflected for the network where H or W cannot be halved at each level.
            timesteps: (B,), whole or not.
            low_res: (B, in_channels, h, w), of any size, in the range of `x` without noise, [-1, 1].
            y: classes (B,), integers; given if and only if there are `num_classes`.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.
        """
        embedding = self.embed(timesteps, y)
        if self.conditioning == "rrdb":
            features = self.low_res_encoder(low_res.to(x.dtype), self.checkpointing and self.training)
            return self.predict_any_size(x, embedding, first=enlarge_to(self.low_res_proj(features), x))
        mode: Literal["bilinear", "bicubic"] = "bicubic" if self.conditioning == "bicubic" else "bilinear"
        return self.predict_any_size(torch.cat((x, enlarge_to(low_res, x, mode)), dim=1), embedding)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2], "attention_resolutions": [1]}
        more = {"norm_groups": "dlas", "num_classes": 3, "null_class": True}
        inputs = (torch.randn(2, 3, 8, 12), torch.tensor([3, 700]), torch.randn(2, 3, 4, 6), torch.tensor([2, 3]))
        return options | more, inputs
