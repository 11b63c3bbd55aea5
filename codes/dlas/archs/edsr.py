"""EDSR, residual blocks without normalisation.

Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017 (arXiv:1707.02921),
figures 2 and 3.

The layers have the names of the checkpoints that BasicSR publishes: ``conv_first``, ``body.<i>.conv<k>``, ``conv_after_body``,
``upsample.<i>``, ``conv_last``; those of the authors' own release (``head.0``, ``body.<i>.body.<k>``, ``tail.0.<i>``) are
translated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.input_range import InputRange
from dlas.layers.recompute import recompute
from dlas.layers.upsample import SubPixelUpsample
from dlas.registry import ARCHS
from dlas.types import PositiveFloat, PositiveInt


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution; the input added to a multiple of the result (figure 2c)."""

    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        return torch.add(x, self.conv2(F.relu_(self.conv1(x))), alpha=self.res_scale)


@ARCHS.register("EDSR")
class EDSR(nn.Module):
    """EDSR; the defaults are the baseline (EDSR-M). EDSR-L has `num_feat` 256, `num_block` 32 and `res_scale` 0.1.

    Args:
        num_in_ch: input channels.
        num_out_ch: output channels.
        num_feat: width.
        num_block: residual blocks.
        scale: enlargement: 1, 2, 3, 4 or 8.
        res_scale: factor on the residual branch of each block.
        img_range: the network works on pictures in [0, `img_range`] of which `rgb_mean` was subtracted.
        rgb_mean: mean of the training pictures in [0, 1], one number a channel; not subtracted if there are other than 3
            channels.

    Raises:
        ValueError: `scale` is another, or input and output channels differ.
    """

    def __init__(
        self,
        *,
        num_in_ch: PositiveInt = 3,
        num_out_ch: PositiveInt = 3,
        num_feat: PositiveInt = 64,
        num_block: PositiveInt = 16,
        scale: Literal[1, 2, 3, 4, 8] = 4,
        res_scale: float = 1.0,
        img_range: PositiveFloat = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        super().__init__()
        if num_in_ch != num_out_ch:
            raise ValueError(f"the mean is subtracted and added, so num_in_ch ({num_in_ch}) must be num_out_ch ({num_out_ch})")
        self.checkpointing = False
        self.range = InputRange(num_in_ch, img_range, rgb_mean)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat, res_scale) for _ in range(num_block)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample = SubPixelUpsample(scale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            x: (batch, num_in_ch, height, width), RGB in [0, 1].

        Returns:
            (batch, num_out_ch, height * scale, width * scale), not clamped.
        """
        first = self.conv_first(self.range.enter(x))
        features = first
        for block in self.body:
            features = recompute(block, features, when=self.checkpointing and self.training)
        features = first + self.conv_after_body(features)
        return self.range.leave(self.conv_last(self.upsample(features)))

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the layers of the authors' checkpoints their names here; their constant layers for the mean are dropped."""
        if "head.0.weight" not in state_dict:
            return state_dict
        last = max(int(found[1]) for key in state_dict if (found := re.match(r"body\.(\d+)\.weight$", key)))
        names = {
            r"head\.0\.": "conv_first.",
            rf"body\.{last}\.(?=weight|bias)": "conv_after_body.",
            r"body\.(\d+)\.body\.0\.": r"body.\1.conv1.",
            r"body\.(\d+)\.body\.2\.": r"body.\1.conv2.",
            r"tail\.0\.": "upsample.",
            r"tail\.1\.": "conv_last.",
        }
        renamed = {}
        for key, value in state_dict.items():
            if key.startswith(("sub_mean.", "add_mean.")):
                continue
            fitting = (re.sub(f"^{old}", new, key) for old, new in names.items() if re.match(old, key))
            renamed[next(fitting, key)] = value
        return renamed

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"num_feat": 8, "num_block": 2, "scale": 2}, (torch.rand(2, 3, 12, 9),)
