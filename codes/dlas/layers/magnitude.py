"""Layers that keep the magnitude of what they are given: in comes unit variance, out goes about unit variance.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", CVPR 2024 (arXiv:2312.02696), section 2.3
and appendix B. Weights have one norm for good, so features can neither grow nor shrink as training goes on, and a learning rate
means the same relative change in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-4
"""Added to magnitudes before they divide."""

HELD = 1e-5
"""Weights whose magnitude is 1 up to this are left alone: it is more than roundings, and far less than counts."""

SILU_MAGNITUDE = 0.596
"""Root mean square of SiLU of standard normal numbers (equation 81)."""


def magnitude(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The root mean square over some dimensions, which stay as 1; in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide)
    return size * math.sqrt(size.numel() / x.numel())


def normalize(x: Tensor, dims: int | tuple[int, ...], low_precision: bool = False) -> Tensor:
    """Divides by the root mean square over some dimensions.

    Args:
        x: any shape.
        dims: over which the mean goes.
        low_precision: divide in the type of `x`; otherwise in float32 at least. The mean is in float32 in both cases.

    Returns:
        The shape and type of `x`.
    """
    size = magnitude(x, dims) + EPS
    return x / size.to(x.dtype) if low_precision else (x.to(size.dtype) / size).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU, over its own magnitude (equation 81)."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
    """A weighted sum of two uncorrelated tensors (equation 88).

    Args:
        a: any shape.
        b: the same shape.
        share: of `b`, in [0, 1].
    """
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
    """Channels of two pictures, so weighted that each contributes its share whatever its number of channels (equation 103).

    Args:
        a: (B, C, H, W).
        b: (B, D, H, W).
        share: of `b`, in [0, 1].

    Returns:
        (B, C + D, H, W).
    """
    scale = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - share) ** 2 + share**2))
    return torch.cat((a * (scale * (1 - share) / math.sqrt(a.shape[1])), b * (scale * share / math.sqrt(b.shape[1]))), dim=1)


class MPFourier(nn.Module):
    """Cosines of random frequencies and phases, sqrt(2) high (equation 75).

    Args:
        channels: of the result.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B,) -> (B, channels), in the type of the frequencies."""
        return (torch.outer(x.to(self.freqs.dtype), self.freqs) + self.phases).cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution or a linear layer without bias, whose weights are normalised for each output (equation 47).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        side: of the kernel; None for a linear layer.
    """

    def __init__(self, in_channels: int, out_channels: int, side: int | None) -> None:
        super().__init__()
        kernel = () if side is None else (side, side)
        self.out_channels = out_channels
        self.padding = 0 if side is None else side // 2
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """(B, in_channels, H, W), or (B, in_channels) for a linear layer -> the same with `out_channels`, times `gain`."""
        weight = normalize(self.weight, self._dims) * (gain / math.sqrt(self.weight[0].numel()))
        weight = weight.to(x.dtype)
        return F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, padding=self.padding)

    @torch.no_grad()
    def hold_norm(self) -> None:
        """Gives the weights themselves unit magnitude, in place; doing it a second time changes not a bit.

        So all forward passes between two steps of the optimiser, in micro-batches, after a resumption or where activations are
        recomputed, see the same numbers.
        """
        size = magnitude(self.weight, self._dims)
        held = torch.where((size - 1).abs() < HELD, self.weight, self.weight / size.clamp(min=EPS))
        # Through `data`, since what autograd has saved of earlier passes stays true. Versions of weights would not tell whether
        # they have changed: fused optimisers do not count them.
        (self.weight if torch.compiler.is_compiling() else self.weight.data).copy_(held)

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(1, self.weight.dim()))


def hold_norms(modules: Iterable[nn.Module]) -> None:
    """Forced weight normalisation (equation 66) of all `MPConv` among some modules, before a forward pass that trains."""
    for module in modules:
        if isinstance(module, MPConv):
            module.hold_norm()
