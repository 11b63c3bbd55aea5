"""The VGG-style discriminator of ESRGAN: stages of two convolutions that halve the picture, then two linear layers.

Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV workshops 2018 (arXiv:1809.00219),
section 3.2; the layout goes back to Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial
Network", CVPR 2017 (arXiv:1609.04802), figure 4.

The layers have the names of published checkpoints: ``conv<i>_0``, ``conv<i>_1``, ``bn<i>_<j>``, ``linear1``, ``linear2``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlas.layers.fixed_size import check_size
from dlas.registry import ARCHS
from dlas.types import PositiveInt

LEAK = 0.2
"""Slope of the leaky ReLUs below zero."""

WIDEST = 8
"""Channels double from stage to stage up to this multiple of the first stage's."""

GROUPS = 8
"""Groups of the group-normalised form."""

HIDDEN = 100
"""Units between the two linear layers."""


class _VGGDiscriminator(nn.Module):
    """All registered forms, given how to normalise.

    Args:
        normalise: makes the normalisation layer for a number of channels.
        in_nc: input channels.
        nf: channels of the first stage.
        image_size: height and width of the pictures, in pixels.
        stages: number of stages; each halves the picture.
    """

    def __init__(self, normalise: Callable[[int], nn.Module], *, in_nc: int, nf: int, image_size: int, stages: int) -> None:
        super().__init__()
        if image_size % 2**stages:
            raise ValueError(f"image_size must be a multiple of {2**stages} ({stages} stages each halve it), got {image_size}")
        self.image_size = image_size
        self.stages = stages
        channels = in_nc
        for stage in range(stages):
            width = nf * min(2**stage, WIDEST)
            # A bias before a normalisation would be without effect. The very first convolution is not normalised.
            self.add_module(f"conv{stage}_0", nn.Conv2d(channels, width, 3, padding=1, bias=stage == 0))
            if stage > 0:
                self.add_module(f"bn{stage}_0", normalise(width))
            self.add_module(f"conv{stage}_1", nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False))
            self.add_module(f"bn{stage}_1", normalise(width))
            channels = width
        self.linear1 = nn.Linear(channels * (image_size // 2**stages) ** 2, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Judges pictures.

        Args:
            x: (batch, in_nc, image_size, image_size).

        Returns:
            One logit a picture, (batch, 1); higher is more real.

        Raises:
            ValueError: the pictures have another size.
        """
        check_size(x, self.image_size)
        for stage in range(self.stages):
            x = self._run_stage(x, stage)
        return self.linear2(F.leaky_relu_(self.linear1(x.flatten(1)), LEAK))

    def _run_stage(self, x: Tensor, stage: int) -> Tensor:
        x = self.get_submodule(f"conv{stage}_0")(x)
        if stage > 0:
            x = self.get_submodule(f"bn{stage}_0")(x)
        x = self.get_submodule(f"conv{stage}_1")(F.leaky_relu_(x, LEAK))
        return F.leaky_relu_(self.get_submodule(f"bn{stage}_1")(x), LEAK)


@ARCHS.register("discriminator_vgg_128")
class DiscriminatorVGG128(_VGGDiscriminator):
    """The discriminator with batch normalisation, of a size to choose.

    Args:
        in_nc: input channels.
        nf: channels of the first stage.
        image_size: height and width of the pictures it judges, in pixels; a multiple of 32, or of 64 with `extra_conv`.
        extra_conv: add a sixth stage, as is usual for 256 pixels.

    Raises:
        ValueError: `image_size` is not such a multiple.
    """

    def __init__(
        self, *, in_nc: PositiveInt = 3, nf: PositiveInt = 64, image_size: PositiveInt = 128, extra_conv: bool = False
    ) -> None:
        super().__init__(nn.BatchNorm2d, in_nc=in_nc, nf=nf, image_size=image_size, stages=6 if extra_conv else 5)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"nf": 4, "image_size": 64}, (torch.rand(4, 3, 64, 64),)


@ARCHS.register("VGGStyleDiscriminator")
class VGGStyleDiscriminator(_VGGDiscriminator):
    """The discriminator with batch normalisation under BasicSR's name and options.

    Args:
        num_in_ch: input channels.
        num_feat: channels of the first stage.
        input_size: height and width of the pictures it judges, in pixels: 128 (five stages) or 256 (six).

    Raises:
        ValueError: `input_size` is another.
    """

    def __init__(self, *, num_in_ch: PositiveInt = 3, num_feat: PositiveInt = 64, input_size: Literal[128, 256] = 128) -> None:
        if input_size not in (128, 256):
            raise ValueError(f"input_size must be 128 or 256, got {input_size}; discriminator_vgg_128 takes other sizes")
        super().__init__(
            nn.BatchNorm2d, in_nc=num_in_ch, nf=num_feat, image_size=input_size, stages=6 if input_size == 256 else 5
        )

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"num_feat": 4}, (torch.rand(2, 3, 128, 128),)


@ARCHS.register("discriminator_vgg_128_gn")
class DiscriminatorVGG128GN(_VGGDiscriminator):
    """The discriminator with group normalisation: a picture's logit does not depend on the rest of its batch.

    Args:
        in_nc: input channels.
        nf: channels of the first stage, a multiple of 8.
        image_size: height and width of the pictures it judges, in pixels; a multiple of 32, or of 64 with `extra_conv`.
        extra_conv: add a sixth stage, as is usual for 256 pixels.
        do_checkpointing: recompute activations in the backward pass, whatever the trainer's own setting.

    Raises:
        ValueError: `nf` or `image_size` is not such a multiple.
    """

    def __init__(
        self,
        *,
        in_nc: PositiveInt = 3,
        nf: PositiveInt = 64,
        image_size: PositiveInt = 128,
        extra_conv: bool = False,
        do_checkpointing: bool = False,
    ) -> None:
        if nf % GROUPS:
            raise ValueError(f"nf must be a multiple of {GROUPS}, the number of normalisation groups; got {nf}")
        super().__init__(_group_norm, in_nc=in_nc, nf=nf, image_size=image_size, stages=6 if extra_conv else 5)
        self.do_checkpointing = do_checkpointing
        self.checkpointing = False

    def _run_stage(self, x: Tensor, stage: int) -> Tensor:
        # Only here: batch normalisation would count each batch twice in its running statistics.
        recompute = self.checkpointing or self.do_checkpointing
        if recompute and self.training and torch.is_grad_enabled():
            return checkpoint(super()._run_stage, x, stage, use_reentrant=False, preserve_rng_state=False)
        return super()._run_stage(x, stage)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"nf": 8, "image_size": 64}, (torch.rand(2, 3, 64, 64),)


@ARCHS.register("discriminator_vgg_448")
class DiscriminatorVGG448(_VGGDiscriminator):
    """The group-normalised discriminator of half the size behind two further convolutions, to train on with larger pictures.

    With the weights of a `discriminator_vgg_128_gn` of half the `image_size` (`strict_load: false`) all but the new layers are
    trained; these are the parameter group `new_head`.

    Args:
        in_nc: input channels.
        nf: channels of the smaller one's first stage, a multiple of 16.
        image_size: height and width of the pictures it judges, in pixels; a multiple of 64.

    Raises:
        ValueError: `nf` or `image_size` is not such a multiple.
    """

    def __init__(self, *, in_nc: PositiveInt = 3, nf: PositiveInt = 64, image_size: PositiveInt = 448) -> None:
        if nf % (2 * GROUPS):
            raise ValueError(f"nf must be a multiple of {2 * GROUPS}, twice the number of normalisation groups; got {nf}")
        if image_size % 64:
            raise ValueError(f"image_size must be a multiple of 64 (6 stages each halve it), got {image_size}")
        super().__init__(_group_norm, in_nc=in_nc, nf=nf, image_size=image_size // 2, stages=5)
        self.image_size = image_size
        self.get_submodule("conv0_0").requires_grad_(False)  # of the smaller one; nothing runs it
        self.convn1_0 = nn.Conv2d(in_nc, nf // 2, 3, padding=1)
        self.convn1_1 = nn.Conv2d(nf // 2, nf // 2, 4, stride=2, padding=1, bias=False)
        self.bnn1_1 = _group_norm(nf // 2)
        self.conv0_0_new = nn.Conv2d(nf // 2, nf, 3, padding=1, bias=False)
        self.bn0_0 = _group_norm(nf)
        for module in (self.convn1_0, self.convn1_1, self.bnn1_1, self.conv0_0_new, self.bn0_0):
            for parameter in module.parameters():
                parameter.PARAM_GROUP = "new_head"  # type: ignore[attr-defined]  # read by the optimiser's groups

    def _run_stage(self, x: Tensor, stage: int) -> Tensor:
        if stage > 0:
            return super()._run_stage(x, stage)
        x = F.leaky_relu_(self.convn1_0(x), LEAK)
        x = F.leaky_relu_(self.bnn1_1(self.convn1_1(x)), LEAK)
        x = F.leaky_relu_(self.bn0_0(self.conv0_0_new(x)), LEAK)
        return F.leaky_relu_(self.get_submodule("bn0_1")(self.get_submodule("conv0_1")(x)), LEAK)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"nf": 16, "image_size": 64}, (torch.rand(2, 3, 64, 64),)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels)
