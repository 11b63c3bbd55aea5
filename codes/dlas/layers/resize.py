"""Bicubic resizing as MATLAB's `imresize` does it, which made the low-resolution images of the super-resolution benchmarks."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dlas.host import sent

_SUPPORT = 4.0
"""Width of the cubic kernel, in pixels of the coarser grid."""


def imresize(
    image: Tensor, scale: float | None = None, *, size: tuple[int, int] | None = None, antialias: bool = True
) -> Tensor:
    """Resizes the last two axes by cubic convolution; rows first, then columns. Nothing is clipped or rounded.

    Unlike `torch.nn.functional.interpolate`, which cuts the kernel off at the border, the image is continued by its mirror
    image (with the edge repeated); and a is -1/2 with and without antialiasing (torch: -3/4 without).

    Args:
        image: (..., C, H, W), float32 or float64, any range and device. Differentiable.
        scale: output size over input size, both axes; the output has ceil(H * scale) rows and ceil(W * scale) columns.
        size: (rows, columns) of the output instead of `scale`; the scale of an axis is then output over input length.
        antialias: widen the kernel by 1 / scale where the image shrinks.

    Returns:
        (..., C, rows, columns), contiguous, dtype and device of `image`.

    Raises:
        ValueError: not exactly one of `scale` and `size` is given, either is not positive, or `image` is not as described.

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981, eq. 15 (a = -1/2).
    """
    if image.ndim < 2 or image.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"imresize takes a float32 or float64 tensor (..., H, W), not {image.dtype} of shape {tuple(image.shape)}; "
            "convert 8-bit images with image.float() / 255"
        )
    if image.numel() == 0:
        raise ValueError(f"imresize: the image of shape {tuple(image.shape)} is empty")
    height, width = image.shape[-2:]
    if (scale is None) == (size is None):
        raise ValueError(f"imresize takes either scale or size, but scale={scale} and size={size} were given")
    if size is not None:
        rows, columns = size
        row_scale, column_scale = rows / height, columns / width
    else:
        assert scale is not None
        rows, columns = math.ceil(height * scale), math.ceil(width * scale)
        row_scale = column_scale = float(scale)
    if rows <= 0 or columns <= 0:
        raise ValueError(f"imresize: the output would have {rows} rows and {columns} columns; give a positive scale or size")
    resized = _resize_rows(image, rows, row_scale, antialias)
    return _resize_rows(resized.transpose(-1, -2), columns, column_scale, antialias).transpose(-1, -2).contiguous()


def _resize_rows(image: Tensor, length: int, scale: float, antialias: bool) -> Tensor:
    """(..., n, m) -> (..., length, m): every output row is a weighted sum of few input rows."""
    *leading, rows, columns = image.shape
    taps, weights = _taps(rows, length, scale, antialias, image.dtype, image.device)
    planes = math.prod(leading)
    first_row = torch.arange(planes, device=image.device) * rows
    # An embedding bag is a gather and a weighted sum in one pass: several times faster than a dense or sparse product.
    resized = F.embedding_bag(
        (first_row[:, None, None] + taps).flatten(0, 1),
        image.reshape(planes * rows, columns),
        mode="sum",
        per_sample_weights=weights.repeat(planes, 1),
    )
    return resized.reshape(*leading, length, columns)


@lru_cache(maxsize=128)
def _taps(
    length_in: int, length_out: int, scale: float, antialias: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Indices of the input samples behind each output sample, and their weights; both (length_out, taps)."""
    # These are kept. Tensors made in inference mode could not be used in training later, those made while a run is traced
    # without data (`dlas check --dry`) could not be used at all.
    with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
        stretch = min(scale, 1.0) if antialias else 1.0
        support = _SUPPORT / stretch
        # Centre of output pixel i in input pixels: both grids cover the same area, pixel centres are at half-integers.
        centre = (torch.arange(length_out, dtype=torch.float64) + 0.5) / scale - 0.5
        first = torch.floor(centre - support / 2)
        position = first[:, None] + torch.arange(math.ceil(support) + 2)
        weights = _cubic((centre[:, None] - position) * stretch)
        weights /= weights.sum(1, keepdim=True)
        used = (weights != 0).any(0)
        # Mirroring with the edge repeated has period 2n: 0 .. n-1, n-1 .. 0.
        folded = position[:, used].long() % (2 * length_in)
        taps = torch.minimum(folded, 2 * length_in - 1 - folded)
        return sent(taps, device), sent(weights[:, used], device, dtype)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, torch.where(x <= 2, outer, torch.zeros_like(x)))
