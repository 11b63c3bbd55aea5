"""Penalties on gradients with respect to a network's inputs. All are differentiable once more.

Call them with gradients enabled and outside autocast: second derivatives in half precision are noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor


def input_gradient(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Gradient of the sum of `outputs` with respect to `inputs`, shape of `inputs`, itself differentiable.

    For a discriminator without batch statistics this is the gradient of each sample's own logits.
    """
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
    return gradient


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over samples of the squared gradient norm at real images, without the factor gamma / 2.

    Args:
        logits: of real images.
        images: the real images, (N, ...), requiring a gradient.

    Returns:
        Scalar.

    Source: L. Mescheder et al., "Which training methods for GANs do actually converge?", 2018, eq. 9.
    """
    return input_gradient(logits, images).flatten(1).square().sum(1).mean()


def unit_gradient_penalty(logits: Tensor, images: Tensor, norm: Literal["sample", "pixel"] = "sample") -> Tensor:
    """Mean of (gradient norm - 1)^2 at the given images, without a factor.

    Args:
        logits: of `images`.
        images: (N, ...), requiring a gradient.
        norm: over all values of a sample, or over the channel axis of each pixel.

    Returns:
        Scalar.
    """
    return _distance_from_one(input_gradient(logits, images), norm)


def interpolate_gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    alpha: Tensor,
    weight: Tensor | None = None,
    norm: Literal["sample", "pixel"] = "sample",
) -> Tensor:
    """WGAN-GP: `unit_gradient_penalty` at random points between real and generated images, without the factor lambda.

    Args:
        discriminator: images -> logits.
        real: (N, ...).
        fake: shape of `real`.
        alpha: share of `real` in each mixture, in [0, 1], (N, 1, ...).
        weight: factors for the gradient, broadcast against it (for instance a mask of the pixels that were generated); the
            penalty is then divided by their mean.
        norm: as in `unit_gradient_penalty`. The paper's is ``sample``; image restoration codes also use ``pixel``.

    Returns:
        Scalar.

    Source: I. Gulrajani et al., "Improved training of Wasserstein GANs", 2017, eq. 3.
    """
    mixture = (alpha * real + (1 - alpha) * fake).detach().requires_grad_()
    gradient = input_gradient(discriminator(mixture), mixture)
    if weight is None:
        return _distance_from_one(gradient, norm)
    return _distance_from_one(gradient * weight, norm) / weight.mean()


def path_length_penalty(
    images: Tensor, latents: Tensor, noise: Tensor, running_mean: Tensor | float, decay: float = 0.01
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared deviation of a generator's path lengths from their running mean.

    Args:
        images: generated from `latents`, (N, C, H, W).
        latents: (N, layers, D) or (N, D), requiring a gradient.
        noise: standard normal, shape of `images`; scaled by 1 / sqrt(H W) here.
        running_mean: of the path lengths so far.
        decay: share of this batch in the new running mean.

    Returns:
        The penalty; the path length of each sample, (N,), detached; the new running mean, detached.

    Source: T. Karras et al., "Analyzing and improving the image quality of StyleGAN", 2020, eq. 4.
    """
    height, width = images.shape[-2:]
    gradient = input_gradient(images * noise / math.sqrt(height * width), latents)
    lengths = gradient.float().square().sum(-1).reshape(len(gradient), -1).mean(1).sqrt()
    mean = running_mean + decay * (lengths.mean() - running_mean)
    return (lengths - mean).square().mean(), lengths.detach(), mean.detach()


def _distance_from_one(gradient: Tensor, norm: str) -> Tensor:
    values = gradient.flatten(1) if norm == "sample" else gradient
    return (torch.linalg.vector_norm(values, dim=1) - 1).square().mean()
