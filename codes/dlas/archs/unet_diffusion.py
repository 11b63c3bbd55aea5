"""The super-resolving diffusion U-Nets of DL-Art-School.

They are guided-diffusion's with other groups of normalisation, shown beside the noisy and the low-resolution picture how the
latter was corrupted: one plane of a constant a kind of corruption. The guided one also sees another picture of the same scene.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021 (arXiv:2105.05233), and Saharia et al.,
"Image Super-Resolution via Iterative Refinement", 2021 (arXiv:2104.07636), as DL-Art-School has them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.layers.classifiers.resnet import Bottleneck
from dlas.layers.unet import UNet, UNetOptions, check_side, enlarge_to
from dlas.registry import ARCHS
from dlas.types import Fraction, NonNegativeInt, PositiveInt

STAGES_BY_SIZE = {64: 2, 128: 3, 256: 4}
"""How many of a ResNet-50's stages see the other picture, by the size of pictures."""


def with_conditions(x: Tensor, low_res: Tensor, corruption_factor: Tensor | None, planes: int) -> Tensor:
    """What a network is shown: the noisy picture, the low-resolution one at its size, and planes of constants.

    Args:
        x: (B, C, H, W).
        low_res: (B, D, h, w).
        corruption_factor: (B, `planes`); None for zeros. Further ones are left out, with a warning.
        planes: number of planes.

    Returns:
        (B, C + D + `planes`, H, W).

    Raises:
        ValueError: there are fewer corruption factors than planes.
    """
    shown = [x, enlarge_to(low_res, x)]
    if planes:
        if corruption_factor is None:
            corruption_factor = x.new_zeros(len(x), planes)
        given = corruption_factor.flatten(1)
        if given.shape[1] < planes:
            raise ValueError(f"the network is told of {planes} corruptions, but {given.shape[1]} factors were given")
        if given.shape[1] > planes and not torch.compiler.is_compiling():
            warnings.warn(
                f"{given.shape[1]} corruption factors were given, of which the network takes the first {planes}", stacklevel=3
            )
        shown.append(given[:, :planes, None, None].to(x.dtype).expand(-1, -1, *x.shape[-2:]))
    return torch.cat(shown, dim=1)


def check_upstream(dims: int, use_fp16: bool) -> None:
    """Refuses values of DL-Art-School's options that say what is said elsewhere here.

    Raises:
        ValueError: such a value.
    """
    if dims != 2:
        raise ValueError(f"dims must be 2 (pictures), got {dims}")
    if use_fp16:
        raise ValueError("use_fp16 is not an option of a network here; set `precision: fp16` (or bf16) for the run")


@ARCHS.register("unet_diffusion")
class SuperResDiffusionUNet(UNet):
    """Super-resolving diffusion U-Net that is told how the low-resolution picture was corrupted.

    Args:
        image_size: height and width of the large pictures, divisible as often as the network halves them; others are
            taken, too.
        in_channels: channels of a picture; the first convolution has twice as many and one a corruption.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        num_res_blocks: residual blocks a level on the way down; on the way up there is one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention: 8 at 256 pixels means
            features of 32 pixels.
        num_corruptions: kinds of corruption that the network is told of.
        dropout: probability with which features are dropped within residual blocks.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        conv_resample: convolve when resizing between levels.
        dims: dimensions of pictures: 2.
        num_classes: how many classes `y` may name.
        null_class: one more class, of number `num_classes` (the attribute `null_label`), that stands for none: for guidance
            without a classifier.
        use_fp16: refused if true: the precision is the run's.
        num_heads: heads of attention.
        num_head_channels: channels of a head, in place of the number of heads; -1: `num_heads` counts.
        num_heads_upsample: heads on the way up; -1: as many as on the way down.
        use_scale_shift_norm: times and classes scale and shift normalised features; otherwise they are added before.
        resblock_updown: resize within residual blocks.
        use_new_attention_order: channels of attention's projection are ordered as (q/k/v, head, channel), not as
            (head, q/k/v, channel).
        use_raw_y_as_embedding: `y` is added to the time embedding as it is: (B, 4 * model_channels).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.

    Raises:
        ValueError: sizes do not go together, or there are classes and a raw `y`.
    """

    def __init__(
        self,
        *,
        image_size: PositiveInt,
        in_channels: PositiveInt,
        model_channels: PositiveInt,
        out_channels: PositiveInt,
        num_res_blocks: PositiveInt,
        attention_resolutions: Sequence[int],
        num_corruptions: NonNegativeInt = 0,
        dropout: Fraction = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: Literal[2] = 2,
        num_classes: PositiveInt | None = None,
        null_class: bool = False,
        use_fp16: bool = False,
        num_heads: PositiveInt = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_raw_y_as_embedding: bool = False,
        low_precision_norm: bool = False,
    ) -> None:
        check_upstream(dims, use_fp16)
        if use_raw_y_as_embedding and num_classes is not None:
            raise ValueError("y is a class (num_classes) or an embedding (use_raw_y_as_embedding), not both")
        options = UNetOptions(
            in_channels=2 * in_channels + num_corruptions,
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
            norm_groups="dlas",
            low_precision_norm=low_precision_norm,
        )
        super().__init__(options, out_channels)
        check_side("image_size", image_size, self.factor)
        self.num_corruptions = num_corruptions
        self.raw_y = use_raw_y_as_embedding

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        low_res: Tensor,
        corruption_factor: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, in_channels, H, W); reflected for the network where H or W cannot be halved at each level.
            timesteps: (B,), whole or not.
            low_res: (B, in_channels, h, w), of any size, in the range of `x` without noise, [-1, 1].
            corruption_factor: (B, num_corruptions), how strongly `low_res` was corrupted; without it, 0.
            y: classes (B,), integers, or with `use_raw_y_as_embedding` what is added to the time embedding; given if and only
                if the network has a use for it.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.
        """
        shown = with_conditions(x, low_res, corruption_factor, self.num_corruptions)
        if not self.raw_y:
            return self.predict_any_size(shown, self.embed(timesteps, y))
        if y is None:
            raise ValueError("the network adds y to its time embedding (use_raw_y_as_embedding), but got no y")
        embedding = self.embed(timesteps)
        return self.predict_any_size(shown, embedding + y.to(embedding.dtype))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"image_size": 8, "in_channels": 3, "model_channels": 8, "out_channels": 6, "num_res_blocks": 1}
        more = {"attention_resolutions": [2], "channel_mult": [1, 2], "num_corruptions": 2}
        return options | more, (torch.randn(2, 3, 8, 8), torch.tensor([3, 700]), torch.randn(2, 3, 4, 4), torch.rand(2, 2))


class LatentGuidedUNet(UNet):
    """A U-Net whose deepest features are joined, before the middle, with a vector that says something of the whole picture.

    Args:
        options: of the network.
        out_channels: of the output.
    """

    def __init__(self, options: UNetOptions, out_channels: int) -> None:
        super().__init__(options, out_channels)
        self.latent_join_reduce = options.block(2 * self.channels, self.channels)

    def forward(self, x: Tensor, embedding: Tensor, latent: Tensor) -> Tensor:
        """(B, in_channels, H, W), (B, E) and (B, channels) -> (B, out_channels, H, W)."""
        features = self.descend(x, embedding)
        h = features[-1]
        joined = torch.cat((h, latent.to(h.dtype)[..., None, None].expand(-1, -1, *h.shape[-2:])), dim=1)
        h = self.run(self.middle_block, self.run(self.latent_join_reduce, joined, embedding), embedding)
        return self.ascend(h, features, embedding)


class LatentEncoder(nn.Module):
    """A ResNet-50 of some stages, with group normalisation, and a linear layer: a picture as a vector.

    Args:
        stages: 2 to 4.
        out_channels: of the vector.
    """

    GROUPS = 8

    def __init__(self, stages: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.GroupNorm(self.GROUPS, 64)
        self.stages = stages
        channels = 64
        for number, count in enumerate((3, 4, 6, 3)[:stages], start=1):
            width = 32 * 2**number
            blocks = []
            for place in range(count):
                stride = 2 if place == 0 and number > 1 else 1
                blocks.append(Bottleneck(channels, width, 4 * width, stride, norm=self._norm))
                channels = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def _norm(cls, channels: int) -> nn.Module:
        return nn.GroupNorm(cls.GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, out_channels)."""
        h = nn.functional.max_pool2d(nn.functional.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for number in range(1, self.stages + 1):
            h = self.get_submodule(f"layer{number}")(h)
        return self.fc(h.mean((2, 3)))


@ARCHS.register("unet_diffusion_latent_guide")
class LatentGuidedDiffusion(nn.Module):
    """`unet_diffusion` that also sees, as a vector, another picture of what it is to draw.

    Weights have DL-Art-School's names and shapes where its network works, which is where the last level has 512 channels.

    Args:
        image_size: height and width of the large pictures, which says how many stages see the other one: 64, 128 or 256.
        in_channels: channels of a picture; the first convolution has twice as many and one a corruption.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        num_res_blocks: residual blocks a level on the way down; on the way up there is one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention.
        num_corruptions: kinds of corruption that the network is told of.
        dropout: probability with which features are dropped within residual blocks.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        conv_resample: convolve when resizing between levels.
        dims: dimensions of pictures: 2.
        num_classes: how many classes `y` may name; without it there is no `y`.
        null_class: one more class, of number `num_classes` (the attribute `null_label`), that stands for none: for guidance
            without a classifier.
        use_fp16: refused if true: the precision is the run's.
        num_heads: heads of attention.
        num_head_channels: channels of a head, in place of the number of heads; -1: `num_heads` counts.
        num_heads_upsample: heads on the way up; -1: as many as on the way down.
        use_scale_shift_norm: times and classes scale and shift normalised features; otherwise they are added before.
        resblock_updown: resize within residual blocks.
        use_new_attention_order: channels of attention's projection are ordered as (q/k/v, head, channel), not as
            (head, q/k/v, channel).
        low_precision_norm: under autocast, normalise in the precision of the features in place of float32.

    Raises:
        ValueError: sizes do not go together, or `image_size` is another.
    """

    def __init__(
        self,
        *,
        image_size: Literal[64, 128, 256],
        in_channels: PositiveInt,
        model_channels: PositiveInt,
        out_channels: PositiveInt,
        num_res_blocks: PositiveInt,
        attention_resolutions: Sequence[int],
        num_corruptions: NonNegativeInt = 0,
        dropout: Fraction = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: Literal[2] = 2,
        num_classes: PositiveInt | None = None,
        null_class: bool = False,
        use_fp16: bool = False,
        num_heads: PositiveInt = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        low_precision_norm: bool = False,
    ) -> None:
        super().__init__()
        check_upstream(dims, use_fp16)
        if image_size not in STAGES_BY_SIZE:
            raise ValueError(f"image_size must be one of {', '.join(map(str, STAGES_BY_SIZE))}, got {image_size}")
        options = UNetOptions(
            in_channels=2 * in_channels + num_corruptions,
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
            norm_groups="dlas",
            low_precision_norm=low_precision_norm,
        )
        unet = LatentGuidedUNet(options, out_channels)
        check_side("image_size", image_size, unet.factor)
        self.num_corruptions = num_corruptions
        self.null_label = unet.null_label
        self.encoder = LatentEncoder(STAGES_BY_SIZE[image_size], unet.channels)
        self.unet = unet

    @property
    def checkpointing(self) -> bool:
        """Whether the U-Net's activations are computed again in the backward pass."""
        return self.unet.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.unet.checkpointing = value

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        alt_hq: Tensor,
        low_res: Tensor,
        corruption_factor: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, in_channels, H, W); H and W can be halved at each level.
            timesteps: (B,), whole or not.
            alt_hq: the other pictures, (B, 3, H', W'), of any size.
            low_res: (B, in_channels, h, w), of any size, in the range of `x` without noise, [-1, 1].
            corruption_factor: (B, num_corruptions), how strongly `low_res` was corrupted; without it, 0.
            y: classes (B,), integers; given if and only if there are `num_classes`.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.
        """
        shown = with_conditions(x, low_res, corruption_factor, self.num_corruptions)
        return self.unet(shown, self.unet.embed(timesteps, y), self.encoder(alt_hq))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"image_size": 64, "in_channels": 3, "model_channels": 8, "out_channels": 6, "num_res_blocks": 1}
        more = {"attention_resolutions": [2], "channel_mult": [1, 2], "num_corruptions": 1}
        inputs = (torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.randn(2, 3, 32, 32), torch.randn(2, 3, 8, 8))
        return options | more, inputs
