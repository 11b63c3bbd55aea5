"""Invertible layers of conditional normalising flows, and the log-determinants of their Jacobians.

Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS 2018 (arXiv:1807.03039), table 1;
Lugmayr et al., "SRFlow: Learning the Super-Resolution Space with Normalizing Flow", ECCV 2020 (arXiv:2006.14200), section 3.3.
Parameters have the names of SRFlow's published checkpoints.

Every layer maps ``encode(x, condition) -> (z, log_density)`` and back by ``decode(z, condition)``; ``log_density``, (B,), is
what the layer adds to ln p(x) of each sample.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_STD = 0.05
"""Of the convolutions that are followed by a normalisation."""

ZERO_CONV_GAIN = 3.0
"""How much faster the scale of a convolution that starts as zero is learned (Glow's code)."""

DEVIATION_FLOOR = 1e-6
"""Added to standard deviations before division."""


class ActNorm(nn.Module):
    """(x + bias) exp(logs), by channel. The first batch that is trained on comes out with mean 0 and deviation 1.

    That happens once: not where any bias is other than zero, as in a checkpoint. With several processes it is their batches
    together.

    Source: Glow, section 3.1.
    """

    stage: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.logs = nn.Parameter(torch.zeros(1, channels, 1, 1))
        # Read by its length, which costs no wait for the device: 1 before the first batch, 2 afterwards. As a buffer it comes
        # back where a pass is made that is to leave no trace.
        self.register_buffer("stage", torch.zeros(1), persistent=False)

    @property
    def awaits_batch(self) -> bool:
        """Whether the first batch is still to come; does not wait for the device."""
        return len(self.stage) == 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        if self.awaits_batch and self.training and torch.is_grad_enabled():
            self._fit(x)
        return (x + self.bias) * self.logs.exp()

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` made `y` of."""
        return y * (-self.logs).exp() - self.bias

    def log_determinant(self, pixels: int) -> Tensor:
        """Of the Jacobian for one sample; a scalar."""
        return self.logs.sum() * pixels

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        # Moments around zero would cancel where the mean is large: first the mean, then the deviation from it.
        mean = _mean_over_processes(x.mean((0, 2, 3), keepdim=True))
        deviation = _mean_over_processes((x - mean).square().mean((0, 2, 3), keepdim=True)).sqrt()
        fresh = ~self.bias.any()  # stays on the device: nothing waits for it
        self.bias.copy_(torch.where(fresh, -mean, self.bias))
        self.logs.copy_(torch.where(fresh, -(deviation + DEVIATION_FLOOR).log(), self.logs))
        self.stage = self.stage.new_zeros(2)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.stage = self.stage.new_zeros(1 if self.bias.is_meta or not self.bias.any() else 2)


def _mean_over_processes(value: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.contiguous()
        torch.distributed.all_reduce(value)
        return value / torch.distributed.get_world_size()
    return value


class NormedConv(nn.Conv2d):
    """A convolution without bias and an ActNorm."""

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(in_channels, out_channels, side, padding=side // 2, bias=False)
        nn.init.normal_(self.weight, std=WEIGHT_STD)
        self.actnorm = ActNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self.actnorm(super().forward(x))


class ZeroConv(nn.Conv2d):
    """A 3x3 convolution that starts as zero, with a learned scale of each output channel (Glow, section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        assert self.bias is not None
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.logs = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return super().forward(x) * (self.logs * ZERO_CONV_GAIN).exp()


class InvertibleConv(nn.Module):
    """A 1x1 convolution with a square matrix, a rotation at first (Glow, section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.conv2d(x, self.weight[:, :, None, None])

    def inverse(self, y: Tensor) -> Tensor:
        """What `forward` made `y` of."""
        return F.conv2d(y, torch.linalg.inv(self.weight.double()).to(y.dtype)[:, :, None, None])

    def log_determinant(self, pixels: int) -> Tensor:
        """Of the Jacobian for one sample; a scalar."""
        return torch.linalg.slogdet(self.weight).logabsdet * pixels


class ConditionalAffine(nn.Module):
    """First an affine map that follows from the condition, then one of half the channels that follows from the others and it.

    Args:
        channels: of what is mapped.
        condition_channels: of the condition.
        hidden_channels: width of the two small networks that make shifts and scales.
        eps: the least scale.

    Source: SRFlow, section 3.3: the affine injector and the conditional affine coupling.
    """

    def __init__(self, channels: int, condition_channels: int, hidden_channels: int, eps: float) -> None:
        super().__init__()
        self.kept = channels // 2
        self.eps = eps
        self.fAffine = _subnet(self.kept + condition_channels, hidden_channels, 2 * (channels - self.kept))
        self.fFeatures = _subnet(condition_channels, hidden_channels, 2 * channels)

    def encode(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels, H, W) and (B, condition_channels, H, W) -> the same shape as the first, and (B,)."""
        shift, scale = self._affine(self.fFeatures(condition))
        x = (x + shift) * scale
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        shift_half, scale_half = self._affine(self.fAffine(torch.cat((kept, condition), dim=1)))
        log_density = _by_sample(scale.log()) + _by_sample(scale_half.log())
        return torch.cat((kept, (changed + shift_half) * scale_half), dim=1), log_density

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """The inverse of `encode`."""
        kept, changed = z[:, : self.kept], z[:, self.kept :]
        shift_half, scale_half = self._affine(self.fAffine(torch.cat((kept, condition), dim=1)))
        x = torch.cat((kept, changed / scale_half - shift_half), dim=1)
        shift, scale = self._affine(self.fFeatures(condition))
        return x / scale - shift

    def _affine(self, made: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = _interleaved(made)
        return shift, torch.sigmoid(raw + 2.0) + self.eps


def _subnet(in_channels: int, hidden_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        NormedConv(in_channels, hidden_channels, 3),
        nn.ReLU(),
        NormedConv(hidden_channels, hidden_channels, 1),
        nn.ReLU(),
        ZeroConv(hidden_channels, out_channels),
    )


class Squeeze(nn.Module):
    """Blocks of 2x2 pixels to channels, ordered by channel, row, column."""

    def encode(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> (B, 4 C, H / 2, W / 2), and 0 for each sample; the condition has no part in it."""
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(condition))

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """The inverse of `encode`."""
        assert len(z) == len(condition)
        return F.pixel_shuffle(z, 2)


class FlowStep(nn.Module):
    """Normalisation, 1x1 convolution and, unless it is a transition, the conditional affine maps.

    Args:
        channels: of what is mapped.
        affine: the maps; None for a transition step (SRFlow, section 3.3).
    """

    def __init__(self, channels: int, affine: ConditionalAffine | None) -> None:
        super().__init__()
        self.actnorm = ActNorm(channels)
        self.invconv = InvertibleConv(channels)
        self.affine = affine

    def encode(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels, H, W) and (B, condition_channels, H, W) -> the same shape as the first, and (B,)."""
        pixels = x.shape[2] * x.shape[3]
        z = self.invconv(self.actnorm(x))
        log_density = (self.actnorm.log_determinant(pixels) + self.invconv.log_determinant(pixels)).expand(len(x))
        if self.affine is not None:
            z, more = self.affine.encode(z, condition)
            log_density = log_density + more
        return z, log_density

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """The inverse of `encode`."""
        if self.affine is not None:
            z = self.affine.decode(z, condition)
        return self.actnorm.inverse(self.invconv.inverse(z))


class Split(nn.Module):
    """Takes the last channels away; they are normally distributed, with a mean and a deviation that follow from the others.

    Args:
        channels: of what comes in.
        taken: how many are taken away.

    Source: Dinh et al., "Density Estimation using Real NVP", ICLR 2017 (arXiv:1605.08803), section 3.6; with a learned prior as
    in Glow's code.
    """

    def __init__(self, channels: int, taken: int) -> None:
        super().__init__()
        self.passed, self.taken = channels - taken, taken
        self.conv = ZeroConv(self.passed, 2 * taken)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, channels, H, W) -> what passes, (B, channels - taken, H, W); standardised, what is taken; its ln p(x), (B,)."""
        passed, taken = x[:, : self.passed], x[:, self.passed :]
        mean, logs = _interleaved(self.conv(passed))
        latent = (taken - mean) * (-logs).exp()
        return passed, latent, standard_normal_log_density(latent) - _by_sample(logs)

    def decode(self, passed: Tensor, latent: Tensor) -> Tensor:
        """The inverse of `encode`."""
        mean, logs = _interleaved(self.conv(passed))
        return torch.cat((passed, mean + latent * logs.exp()), dim=1)


def standard_normal_log_density(z: Tensor) -> Tensor:
    """ln N(z; 0, 1) of each sample: (B, ...) -> (B,)."""
    return -0.5 * _by_sample(z.square() + math.log(2 * math.pi))


def _interleaved(made: Tensor) -> tuple[Tensor, Tensor]:
    """Even channels and odd ones."""
    return made[:, 0::2], made[:, 1::2]


def _by_sample(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1)
