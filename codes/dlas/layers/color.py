"""Luma and chroma of RGB images, ITU-R BT.601 studio range."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows Y, Cb, Cr; columns R, G, B in [0, 1]; result in 8-bit steps. Y covers 16..235, Cb and Cr 16..240 around 128.
_BT601 = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)


def rgb_to_y(image: Tensor) -> Tensor:
    """Luma, unrounded.

    Args:
        image: RGB, (..., 3, H, W), float, in [0, 1].

    Returns:
        (..., 1, H, W), on the scale of the input: black is 16/255 and white 235/255.

    Raises:
        ValueError: the image has not three channels.

    Source: ITU-R BT.601-7, section 2.5.
    """
    _check_rgb(image)
    red, green, blue = image.unbind(-3)
    r, g, b = _BT601[0]
    return ((r * red + g * green + b * blue + _OFFSET[0]) / 255).unsqueeze(-3)


def rgb_to_ycbcr(image: Tensor) -> Tensor:
    """Luma and both chroma channels, unrounded.

    Args:
        image: RGB, (..., 3, H, W), float, in [0, 1].

    Returns:
        Y, Cb, Cr, (..., 3, H, W), on the scale of the input: Y in [16/255, 235/255], Cb and Cr in [16/255, 240/255].

    Raises:
        ValueError: the image has not three channels.

    Source: ITU-R BT.601-7, section 2.5.
    """
    _check_rgb(image)
    red, green, blue = image.unbind(-3)
    channels = [r * red + g * green + b * blue + offset for (r, g, b), offset in zip(_BT601, _OFFSET, strict=True)]
    return torch.stack(channels, -3) / 255


def _check_rgb(image: Tensor) -> None:
    if image.ndim < 3 or image.shape[-3] != 3:
        raise ValueError(f"expected an RGB image (..., 3, H, W), not a tensor of shape {tuple(image.shape)}")
