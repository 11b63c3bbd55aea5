"""Carries recipes out on tensors, wherever they are: operations as functions of batches, and `degrade` for whole recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.degradations.base import Blur, GaussianNoise, Jpeg, Operation, PoissonNoise, Recipe, Resize, Sharpen
from dlas.degradations.jpeg import jpeg
from dlas.host import sent


def degrade(images: Tensor, recipes: Sequence[Recipe], seeds: Sequence[int]) -> Tensor:
    """Degrades a batch, each image by its own recipe.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].
        recipes: one for each image; all end at the same size.
        seeds: of each image's noise, which then does not depend on the rest of the batch.

    Returns:
        (B, 3, h, w) in [0, 1], rounded to 8 bits.
    """
    done = []
    for image, recipe, seed in zip(images.split(1), recipes, seeds, strict=True):
        generator = torch.Generator(images.device).manual_seed(seed)
        for operation in recipe:
            image = apply(image, operation, generator)
        done.append(image)
    return torch.cat(done).clamp(0, 1).mul(255).round().div(255)


def apply(image: Tensor, operation: Operation, generator: torch.Generator) -> Tensor:
    """One operation on (1, 3, H, W)."""
    match operation:
        case Blur():
            kernel = sent(torch.from_numpy(np.ascontiguousarray(operation.kernel)), image.device, image.dtype)
            return filter2d(image, kernel[None])
        case Resize():
            size = (operation.height, operation.width)
            if image.shape[-2:] == size:
                return image
            if operation.factor is not None:
                return F.interpolate(image, scale_factor=operation.factor, mode=operation.mode)
            return F.interpolate(image, size=size, mode=operation.mode)
        case GaussianNoise():
            shape = (1, 1, *image.shape[-2:]) if operation.gray else image.shape
            noise = torch.randn(shape, generator=generator, device=image.device, dtype=image.dtype)
            return add_noise(image, operation.sigma, noise)
        case PoissonNoise():
            return add_poisson_noise(image, operation.scale, operation.gray, partial(torch.poisson, generator=generator))
        case Jpeg():
            return jpeg(image.clamp(0, 1), torch.full((1,), operation.quality, device=image.device))
        case Sharpen():
            return usm_sharpen(image, operation.weight, operation.threshold, operation.size)


def filter2d(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlates each image with its kernel, all channels alike; the border is mirrored without repeating the edge.

    Args:
        image: (B, C, H, W).
        kernel: (B, k, k), or (1, k, k) for all images; k odd.
    """
    batch, channels, height, width = image.shape
    size = kernel.shape[-1]
    margin = size // 2
    padded_image = _mirrored(_mirrored(image, margin, -1), margin, -2)
    if len(kernel) == 1:
        planes = padded_image.reshape(batch * channels, 1, *padded_image.shape[-2:])
        return F.conv2d(planes, kernel[:, None]).view(batch, channels, height, width)
    weights = kernel[:, None].repeat_interleave(channels, 0)
    planes = padded_image.reshape(1, batch * channels, *padded_image.shape[-2:])
    return F.conv2d(planes, weights, groups=batch * channels).view(batch, channels, height, width)


def usm_sharpen(image: Tensor, weight: float = 0.5, threshold: float = 10.0, size: int = 51) -> Tensor:
    """Unsharp mask where the image differs from its blurred self by more than `threshold` of 255 (see `Sharpen`)."""
    kernel = sent(gaussian(size), image.device, image.dtype)
    residual = image - _separable(image, kernel)
    mask = _separable((residual.abs() * 255 > threshold).to(image.dtype), kernel)
    sharp = (image + weight * residual).clamp(0, 1)
    return mask * sharp + (1 - mask) * image


def gaussian(size: int) -> Tensor:
    """(size,) samples of a Gaussian that sum to 1, sigma chosen from the size as OpenCV does."""
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    return weights / weights.sum()


def add_noise(image: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
    """image + sigma / 255 x noise, clipped to [0, 1]; `noise` is broadcast over the channels if it has one."""
    return (image + noise * (sigma / 255)).clamp(0, 1)


def add_poisson_noise(image: Tensor, scale: float, gray: bool, draw: Callable[[Tensor], Tensor] = torch.poisson) -> Tensor:
    """Adds shot noise to (1, 3, H, W); see `PoissonNoise`.

    Args:
        image: RGB in [0, 1].
        scale: factor on the noise.
        gray: the noise of the luma in all channels.
        draw: counts for given expectations.
    """
    source = image
    if gray:
        source = (image * image.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    source = (source.clamp(0, 1) * 255).round() / 255
    levels = poisson_levels(source)
    return (image + (draw(source * levels) / levels - source) * scale).clamp(0, 1)


def poisson_levels(image: Tensor) -> Tensor:
    """The number of distinct 8-bit values in each image of a batch, raised to a power of two: (B, 1, 1, 1)."""
    values = (image * 255).round().long().flatten(1)
    present = torch.zeros(len(image), 256, dtype=image.dtype, device=image.device).scatter_(1, values, 1.0)
    return torch.exp2(present.sum(1).log2().ceil()).view(-1, 1, 1, 1)


def _separable(image: Tensor, kernel: Tensor) -> Tensor:
    batch, channels, height, width = image.shape
    margin = len(kernel) // 2
    planes = image.reshape(batch * channels, 1, height, width)
    planes = F.conv2d(_mirrored(planes, margin, -1), kernel.view(1, 1, 1, -1))
    planes = F.conv2d(_mirrored(planes, margin, -2), kernel.view(1, 1, -1, 1))
    return planes.view(batch, channels, height, width)


def _mirrored(image: Tensor, margin: int, dim: int) -> Tensor:
    """Continued on both sides of a dimension by its mirror image without the edge, as often as it takes."""
    length = image.shape[dim]
    if margin < length:
        return F.pad(image, (margin, margin, 0, 0) if dim == -1 else (0, 0, margin, margin), mode="reflect")
    place = torch.arange(-margin, length + margin, device=image.device).abs() % max(2 * length - 2, 1)
    return image.index_select(dim, torch.minimum(place, 2 * length - 2 - place).clamp(min=0))
