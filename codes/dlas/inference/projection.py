"""The latent with which StyleGAN2's generator comes nearest to a picture.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020 (arXiv:1912.04958), appendix D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.archs.stylegan2_generator import StyleGAN2Generator
from dlas.errors import CheckpointError
from dlas.inference.model import find
from dlas.inference.pictures import read_picture
from dlas.layers.resize import imresize

MAPPED = 10_000
"""Random latents of which mean and deviation are taken."""

_LEARNING_RATE = 0.1
_RISE, _FALL = 0.05, 0.25
"""Shares of the steps over which the learning rate rises linearly and, at the end, falls as a cosine."""

_NOISE, _NOISY = 0.05, 0.75
"""Noise on the latent at first, in deviations of latents, and the share of the steps over which it fades."""

_PERCEIVED = 256
"""Most pixels a side that the perceptual distance sees."""


def load_generator(path: str | Path, network: str | None = None) -> StyleGAN2Generator:
    """A generator of a run or of a released file.

    Args:
        path: as for `find`.
        network: which of a run's networks.

    Raises:
        CheckpointError: there is none, or it is another network.
    """
    found = find(path, network)
    generator = found.build()
    if not isinstance(generator, StyleGAN2Generator):
        name = found.options.get("which_model", type(generator).__name__)
        raise CheckpointError(f"{found.source}: a stylegan2_rosinality_gen is needed, and this is {name}")
    return generator


def read_target(path: Path, size: int) -> Tensor:
    """The square in the middle of a picture, resized: (1, 3, size, size) in [0, 1]."""
    picture = read_picture(path).color.expand(3, -1, -1)[None].float()
    side = min(picture.shape[-2:])
    top, left = ((length - side) // 2 for length in picture.shape[-2:])
    picture = picture[..., top : top + side, left : left + side]
    return picture if side == size else imresize(picture, size=(size, size)).clamp(0, 1)


def project(
    generator: StyleGAN2Generator,
    target: Tensor,
    *,
    steps: int = 1000,
    seed: int = 0,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Looks for the output of the mapping network, one for all layers, that makes a picture.

    It begins with the mean of those of random latents, and is moved by Adam; noise on it, which fades, keeps it from stopping
    in the nearest local minimum. Noise of layers stays what the network keeps; the paper optimises it, too.

    Args:
        generator: in evaluation mode, its weights frozen.
        target: (1, 3, size, size) in [0, 1].
        steps: of Adam.
        seed: of the random latents and of the noise.
        perceptual: a distance of pictures (1, 3, h, h) in [0, 1], of 256 pixels a side at most, which is added to the mean
            squared error of pictures in [-1, 1].

    Returns:
        The latent (1, style_dim), and the picture that it makes, (1, 3, size, size) in [0, 1].
    """
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(target.device)

    with torch.no_grad():
        mapped = generator.style(drawn(MAPPED, generator.style_dim))
    latent = mapped.mean(0, keepdim=True)
    deviation = (mapped - latent).square().sum(1).mean().sqrt()
    latent.requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=_LEARNING_RATE)
    for step in range(steps):
        done = step / steps
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * _rate((step + 1) / steps)
        noise = _NOISE * deviation * max(0.0, 1 - done / _NOISY) ** 2
        made = _picture(generator, latent + noise * drawn(*latent.shape))
        loss = 4 * F.mse_loss(made, target)
        if perceptual is not None:
            loss = loss + perceptual(_perceived(made), _perceived(target)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    latent = latent.detach()
    with torch.no_grad():
        return latent, _picture(generator, latent).clamp(0, 1)


def _rate(done: float) -> float:
    """Share of the learning rate, when that share of the steps is done."""
    falling = min(1.0, (1 - done) / _FALL)
    return min(1.0, done / _RISE) * (1 - math.cos(math.pi * falling)) / 2


def _picture(generator: StyleGAN2Generator, latent: Tensor) -> Tensor:
    """(1, 3, size, size), about [0, 1]."""
    picture: Tensor = generator(latent, input_is_latent=True)[0]
    return (picture + 1) / 2


def _perceived(picture: Tensor) -> Tensor:
    shrunk = picture.shape[-1] // _PERCEIVED
    return F.avg_pool2d(picture, shrunk) if shrunk > 1 else picture
