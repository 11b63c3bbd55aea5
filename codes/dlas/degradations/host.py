"""Carries recipes out on NumPy images, for the workers of a data loader: OpenCV's filters and a real JPEG codec."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dlas.degradations.base import Blur, GaussianNoise, Interpolation, Jpeg, Operation, PoissonNoise, Recipe, Resize, Sharpen

FloatImage = NDArray[np.float32]
"""(H, W, 3), RGB in [0, 1]."""

_INTERPOLATIONS: dict[Interpolation, int] = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}
_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


def degrade(image: FloatImage, recipe: Recipe, rng: np.random.Generator) -> FloatImage:
    """Degrades one image.

    Args:
        image: (H, W, 3) RGB in [0, 1]; not changed.
        recipe: what to do.
        rng: gives the seed of all noise.

    Returns:
        (h, w, 3) in [0, 1], rounded to 8 bits.
    """
    # torch draws normal numbers three times as fast as NumPy.
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    image = np.ascontiguousarray(image)
    for operation in recipe:
        image = apply(image, operation, generator)
    return _array(np.round(np.clip(image, 0, 1) * np.float32(255)) / np.float32(255))


def apply(image: FloatImage, operation: Operation, generator: torch.Generator) -> FloatImage:
    """One operation."""
    match operation:
        case Blur():
            return _array(cv2.filter2D(image, -1, operation.kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101))
        case Resize():
            return _resize(image, operation)
        case GaussianNoise():
            channels = 1 if operation.gray else 3
            noise = torch.randn((*image.shape[:2], channels), generator=generator).numpy()
            return _clipped(_array(image + noise * np.float32(operation.sigma / 255)))
        case PoissonNoise():
            return _add_poisson_noise(image, operation, generator)
        case Jpeg():
            return _jpeg(image, operation.quality)
        case Sharpen():
            return usm_sharpen(image, operation)


def usm_sharpen(image: FloatImage, operation: Sharpen) -> FloatImage:
    """Unsharp mask, see `Sharpen`."""
    size = (operation.size, operation.size)
    residual = image - cv2.GaussianBlur(image, size, 0)
    detail = (np.abs(residual) > operation.threshold / 255).astype(np.float32)
    mask = cv2.GaussianBlur(detail, size, 0)
    sharp = np.clip(image + np.float32(operation.weight) * residual, 0, 1)
    return _array(image + mask * (sharp - image))


def _resize(image: FloatImage, operation: Resize) -> FloatImage:
    if image.shape[:2] == (operation.height, operation.width):
        return image
    if operation.mode == "area" or operation.factor is not None:  # OpenCV has other bins, and no factor beside a size
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        if operation.factor is not None:
            resized = F.interpolate(tensor, scale_factor=operation.factor, mode=operation.mode)
        else:
            resized = F.interpolate(tensor, size=(operation.height, operation.width), mode=operation.mode)
        return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    size = (operation.width, operation.height)
    return _array(cv2.resize(image, size, interpolation=_INTERPOLATIONS[operation.mode]))


def _add_poisson_noise(image: FloatImage, operation: PoissonNoise, generator: torch.Generator) -> FloatImage:
    source = (image @ _LUMA)[:, :, None] if operation.gray else image
    pixels = cv2.convertScaleAbs(np.clip(source, 0, 1), alpha=255)
    distinct = np.count_nonzero(np.bincount(pixels.reshape(-1), minlength=256))
    levels = np.float32(2 ** np.ceil(np.log2(distinct)))
    source = pixels.reshape(source.shape).astype(np.float32) / np.float32(255)
    counts = torch.poisson(torch.from_numpy(source * levels), generator=generator).numpy()
    return _clipped(_array(image + (counts / levels - source) * np.float32(operation.scale)))


def _jpeg(image: FloatImage, quality: float) -> FloatImage:
    pixels = cv2.convertScaleAbs(np.clip(image, 0, 1), alpha=255)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    assert done
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return _array(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)) / np.float32(255)


def _clipped(image: FloatImage) -> FloatImage:
    return np.clip(image, 0, 1, out=image)


def _array(image: cv2.typing.MatLike) -> FloatImage:
    return np.asarray(image, np.float32)
