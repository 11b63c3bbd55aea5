"""Changes of colour: one affine map of colours for each picture.

Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020 (arXiv:2006.06676), appendix B.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlas.host import constant
from dlas.layers.augment.draws import happens, normal, uniform


def color(x: Tensor, p: Tensor) -> Tensor:
    """Brightness, contrast, inverted luma, hue and saturation, each with chance `p`; of grey pictures the first three.

    Args:
        x: (N, 1 or 3, H, W) in [-1, 1].
        p: chance.

    Raises:
        ValueError: there is another number of channels.
    """
    count, channels = x.shape[:2]
    if channels not in (1, 3):
        raise ValueError(f"the augmentation 'color' is for 1 or 3 channels, got {channels}; leave it out")
    matrix, offset = color_maps(p, count)
    if channels == 1:  # on the luma axis, where hue and saturation change nothing
        return matrix.sum((1, 2)).div(3).view(-1, 1, 1, 1) * x + offset.view(-1, 1, 1, 1)
    return torch.einsum("nij,njhw->nihw", matrix, x) + offset.view(-1, 1, 1, 1)


def color_maps(p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Random maps c -> M c + b: (count, 3, 3), and (count,), the same for all channels."""
    device = p.device
    offset = normal(happens(p, count), 0.2)
    contrast = torch.exp2(normal(happens(p, count), 0.5))
    inverted = happens(p, count) & (torch.rand(count, device=device) < 0.5)
    hue = uniform(happens(p, count), -math.pi, math.pi)
    saturation = torch.exp2(normal(happens(p, count), 1.0))
    # Within the plane of colours of one luma: a rotation about the grey axis (Rodrigues' formula) and a factor.
    grey = torch.full((3, 3), 1 / 3, device=device)
    across = torch.eye(3, device=device) - grey
    turn = constant([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device) / math.sqrt(3)
    sign = torch.where(inverted, -1.0, 1.0)
    chroma = saturation.view(-1, 1, 1) * (hue.cos().view(-1, 1, 1) * across + hue.sin().view(-1, 1, 1) * turn)
    matrix = contrast.view(-1, 1, 1) * (sign.view(-1, 1, 1) * grey + chroma)
    return matrix, sign * contrast * offset
