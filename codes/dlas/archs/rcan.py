"""RCAN, residual groups of residual blocks whose channels are weighted by attention.

Zhang et al., "Image Super-Resolution Using Very Deep Residual Channel Attention Networks", ECCV 2018 (arXiv:1807.02758),
figures 2 to 4.

The layers have the names of the authors' checkpoints: ``sub_mean``, ``head.0``, ``body.<group>.body.<block>.body.<k>``,
``body.<groups>``, ``tail.0.<i>``, ``tail.1``, ``add_mean``. BasicSR's names (``conv_first``,
``body.<group>.residual_group.<block>``) are translated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.padding import pad_to_multiple
from dlas.layers.recompute import recompute
from dlas.layers.upsample import SubPixelUpsample
from dlas.registry import ARCHS
from dlas.types import PositiveFloat, PositiveInt


class MeanShift(nn.Module):
    """A fixed 1x1 convolution that adds a constant to each channel. Kept as weights because published checkpoints hold them."""

    def __init__(self, shift: Sequence[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(len(shift))[:, :, None, None], requires_grad=False)
        self.bias = nn.Parameter(torch.tensor(list(shift)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape, at full precision: bfloat16 has fewer steps than a picture."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.to(self.weight.dtype), self.weight, self.bias)


class ChannelAttention(nn.Module):
    """Multiplies each channel by a number in (0, 1) made from the means of all (figure 3)."""

    def __init__(self, channels: int, squeeze_factor: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // squeeze_factor, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // squeeze_factor, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class AttentionBlock(nn.Module):
    """A residual block with channel attention (figure 4)."""

    def __init__(self, channels: int, squeeze_factor: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            ChannelAttention(channels, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return torch.add(x, self.body(x), alpha=self.res_scale)


class ResidualGroup(nn.Module):
    """Blocks and a convolution within a residual branch."""

    def __init__(self, channels: int, num_block: int, squeeze_factor: int, res_scale: float) -> None:
        super().__init__()
        blocks = (AttentionBlock(channels, squeeze_factor, res_scale) for _ in range(num_block))
        self.body = nn.Sequential(*blocks, nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return x + self.body(x)


@ARCHS.register("RCAN")
class RCAN(nn.Module):
    """RCAN; the defaults are the published x4 network.

    Args:
        num_in_ch: input channels.
        num_out_ch: output channels.
        num_feat: width.
        num_group: residual groups.
        num_block: blocks in each group.
        squeeze_factor: by how much the attention narrows its channels.
        scale: enlargement: 1, 2, 3, 4 or 8.
        res_scale: factor on the residual branch of each block.
        norm: work on pictures in [0, `img_range`] of which `rgb_mean` was subtracted; if false, on pictures as they are.
        img_range: see `norm`.
        rgb_mean: see `norm`; one number a channel, for pictures in [0, 1].
        unshuffle: at scale 2 or 1, fold the input into channels by 2 or 4 and enlarge by 4 (traiNNer-redux).

    Raises:
        ValueError: `scale` is another, `num_feat` is smaller than `squeeze_factor`, or with `norm` the numbers of channels
            and of means differ.
    """

    def __init__(
        self,
        *,
        num_in_ch: PositiveInt = 3,
        num_out_ch: PositiveInt = 3,
        num_feat: PositiveInt = 64,
        num_group: PositiveInt = 10,
        num_block: PositiveInt = 20,
        squeeze_factor: PositiveInt = 16,
        scale: Literal[1, 2, 3, 4, 8] = 4,
        res_scale: float = 1.0,
        norm: bool = True,
        img_range: PositiveFloat = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        unshuffle: bool = False,
    ) -> None:
        super().__init__()
        if num_feat < squeeze_factor:
            raise ValueError(f"num_feat ({num_feat}) must be at least squeeze_factor ({squeeze_factor})")
        if norm and not num_in_ch == num_out_ch == len(rgb_mean):
            raise ValueError(
                f"norm needs as many input channels ({num_in_ch}) and output channels ({num_out_ch}) as rgb_mean has numbers "
                f"({len(rgb_mean)}); set norm to false"
            )
        self.checkpointing = False
        self.scale = scale
        self.img_range = img_range if norm else 1.0
        self.unshuffle = 4 // scale if unshuffle and scale < 3 else 1
        mean = [img_range * value for value in rgb_mean]
        self.sub_mean = MeanShift([-value for value in mean]) if norm else nn.Identity()
        first = nn.Conv2d(num_in_ch * self.unshuffle**2, num_feat, 3, padding=1)
        self.head = nn.Sequential(nn.PixelUnshuffle(self.unshuffle), first) if self.unshuffle > 1 else nn.Sequential(first)
        groups = (ResidualGroup(num_feat, num_block, squeeze_factor, res_scale) for _ in range(num_group))
        self.body = nn.Sequential(*groups, nn.Conv2d(num_feat, num_feat, 3, padding=1))
        enlarge = SubPixelUpsample(scale * self.unshuffle, num_feat)
        self.tail = nn.Sequential(enlarge, nn.Conv2d(num_feat, num_out_ch, 3, padding=1))
        self.add_mean = MeanShift(mean) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, num_in_ch, height, width), RGB in [0, 1], of any size.

        Returns:
            (batch, num_out_ch, height * scale, width * scale), not clamped.
        """
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.unshuffle)
        first = self.head(self.sub_mean(x * self.img_range))
        features = first
        for part in self.body:
            features = recompute(part, features, when=self.checkpointing and self.training)
        picture = self.add_mean(self.tail(first + features)) / self.img_range
        return picture[..., : height * self.scale, : width * self.scale]

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the layers of BasicSR's checkpoints their names here.

        BasicSR subtracts the mean outside of the layers: `norm` and `img_range` are to be as there, and the constant layers are
        added with its own values.
        """
        if "conv_first.weight" not in state_dict:
            return state_dict
        groups = 1 + max(int(found[1]) for key in state_dict if (found := re.match(r"body\.(\d+)\.", key)))
        blocks = 1 + max(int(found[1]) for key in state_dict if (found := re.match(r"body\.0\.residual_group\.(\d+)\.", key)))
        names = (
            (r"^conv_first\.", "head.0."),
            (r"^conv_after_body\.", f"body.{groups}."),
            (r"^upsample\.", "tail.0."),
            (r"^conv_last\.", "tail.1."),
            (r"^body\.(\d+)\.conv\.", rf"body.\1.body.{blocks}."),
            (r"^body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.1\.", r"body.\1.body.\2.body.3.conv_du.0."),
            (r"^body\.(\d+)\.residual_group\.(\d+)\.rcab\.3\.attention\.3\.", r"body.\1.body.\2.body.3.conv_du.2."),
            (r"^body\.(\d+)\.residual_group\.(\d+)\.rcab\.", r"body.\1.body.\2.body."),
        )
        renamed = {}
        for key, value in state_dict.items():
            for old, new in names:
                key = re.sub(old, new, key)
            renamed[key] = value
        mean = torch.tensor([0.4488, 0.4371, 0.4040]) * 255
        for layer, shift in (("sub_mean", -mean), ("add_mean", mean)):
            renamed |= {f"{layer}.weight": torch.eye(3)[:, :, None, None], f"{layer}.bias": shift}
        return renamed

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"num_feat": 8, "num_group": 2, "num_block": 2, "squeeze_factor": 4, "scale": 2}
        return options, (torch.rand(2, 3, 12, 9),)
