"""JPEG compression as tensor arithmetic, batched, with a quality for each image.

Source: ITU-T T.81, annex A (transform) and annex K (tables); the quality factor of the Independent JPEG Group.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.host import constant, sent

# Table K.1 with rows and columns exchanged, as the differentiable JPEG of the published training code has it; K.2 is symmetric.
_LUMINANCE = (
    (16, 12, 14, 14, 18, 24, 49, 72), (11, 12, 13, 17, 22, 35, 64, 92), (10, 14, 16, 22, 37, 55, 78, 95),
    (16, 19, 24, 29, 56, 64, 87, 98), (24, 26, 40, 51, 68, 81, 103, 112), (40, 58, 57, 87, 109, 104, 121, 100),
    (51, 60, 69, 80, 103, 113, 120, 103), (61, 55, 56, 62, 77, 92, 101, 99),
)  # fmt: skip
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *(((99,) * 8,) * 4),
)  # fmt: skip


def jpeg(image: Tensor, quality: Tensor, differentiable: bool = False) -> Tensor:
    """Compresses and decompresses, chroma averaged over 2 x 2 pixels.

    Args:
        image: (B, 3, H, W) RGB in [0, 1]; the sides need not be multiples of 16 (zeros are added and taken away).
        quality: (B,) from 1 to 100.
        differentiable: round by r(x) + (x - r(x))^3, whose gradient is not zero everywhere (Shin and Song, 2017).

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    height, width = image.shape[-2:]
    image = F.pad(image, (0, -width % 16, 0, -height % 16))
    factor = (torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100).view(-1, 1, 1, 1, 1, 1)
    luminance, blue, red = _to_ycbcr(image * 255).unbind(1)
    halved = [F.avg_pool2d(channel[:, None], 2)[:, 0] for channel in (blue, red)]
    tables = (_table(_LUMINANCE, image), *(2 * (_table(_CHROMINANCE, image),)))
    done = [_quantise(c, table * factor, differentiable) for c, table in zip((luminance, *halved), tables, strict=True)]
    blue, red = (c.repeat_interleave(2, -1).repeat_interleave(2, -2) for c in done[1:])
    result = _to_rgb(torch.stack([done[0], blue, red], 1)).clamp(0, 255) / 255
    return result[..., :height, :width]


def _quantise(channel: Tensor, table: Tensor, differentiable: bool) -> Tensor:
    """(B, H, W) through the transform of 8 x 8 blocks, rounded to multiples of `table` (B or 1, 1, 1, 1, 8, 8)."""
    basis = _cosines(channel)
    batch, height, width = channel.shape
    blocks = (channel - 128).view(batch, 1, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T / table
    rounded = coefficients.round()
    if differentiable:
        rounded = rounded + (coefficients - rounded) ** 3
    blocks = basis.T @ (rounded * table) @ basis
    return blocks.transpose(3, 4).reshape(batch, height, width) + 128


def _cosines(like: Tensor) -> Tensor:
    return _cosines_on(like.dtype, like.device)


@lru_cache(maxsize=16)
def _cosines_on(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II of 8 points as a matrix."""
    k, n = torch.arange(8, dtype=torch.float64).view(8, 1), torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return sent(basis, device, dtype)


def _table(rows: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    return constant(rows, like.device, like.dtype).view(1, 1, 1, 1, 8, 8)


def _to_ycbcr(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.unbind(1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack(
        [
            luminance,
            -0.168736 * red - 0.331264 * green + 0.5 * blue + 128,
            0.5 * red - 0.418688 * green - 0.081312 * blue + 128,
        ],
        1,
    )


def _to_rgb(ycbcr: Tensor) -> Tensor:
    luminance, blue, red = ycbcr[:, 0], ycbcr[:, 1] - 128, ycbcr[:, 2] - 128
    return torch.stack([luminance + 1.402 * red, luminance - 0.344136 * blue - 0.714136 * red, luminance + 1.772 * blue], 1)
