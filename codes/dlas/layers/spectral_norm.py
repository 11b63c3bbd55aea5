"""Convolution whose weight is divided by its largest singular value.

`torch.nn.utils.spectral_norm` does the same with hooks that replace an attribute of the layer in each forward; such a layer
can neither be copied nor compiled in one piece. Names in the state dict are the same: ``weight_orig``, ``weight_u`` and
``weight_v``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-12
"""The least length of a vector that is divided by."""


class SpectralNormConv2d(nn.Module):
    """A convolution with zero padding whose kernel, as a matrix (out, in * height * width), has a spectral norm of about 1.

    The largest singular value is estimated by one step of power iteration in each forward in training, none in evaluation.
    No gradient flows through its singular vectors.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: side of the kernel.
        stride: of the convolution.
        padding: pixels on each side.
        bias: whether there is one.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018 (arXiv:1802.05957),
    algorithm 1.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        plain = nn.Conv2d(in_channels, out_channels, kernel_size, bias=bias)  # for its initial values
        self.weight_orig = nn.Parameter(plain.weight.detach().clone())
        self.bias = nn.Parameter(plain.bias.detach().clone()) if plain.bias is not None else None
        self.register_buffer("weight_u", _unit(torch.randn(out_channels)))
        self.register_buffer("weight_v", _unit(torch.randn(self.weight_orig[0].numel())))
        if not self.weight_orig.is_meta:
            for _ in range(15):
                self._iterate()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) -> (batch, out_channels, ...)."""
        return F.conv2d(x, self.normalised_weight(), self.bias, self.stride, self.padding)

    def normalised_weight(self) -> Tensor:
        """The kernel over its spectral norm; in training this takes a step of power iteration."""
        if self.training:
            self._iterate()
        # A later forward changes the vectors in place; this one's backward needs them as they are now.
        u, v = self.weight_u.clone(), self.weight_v.clone()
        with torch.autocast(u.device.type, enabled=False):
            return self.weight_orig / torch.dot(u, torch.mv(self.weight_orig.flatten(1), v))

    @torch.no_grad()
    def _iterate(self) -> None:
        matrix = self.weight_orig.flatten(1)
        with torch.autocast(matrix.device.type, enabled=False):
            self.weight_v.copy_(_unit(torch.mv(matrix.t(), self.weight_u)))
            self.weight_u.copy_(_unit(torch.mv(matrix, self.weight_v)))

    def extra_repr(self) -> str:
        """Sizes, as torch's own convolution shows them."""
        out_channels, in_channels, *kernel = self.weight_orig.shape
        return f"{in_channels}, {out_channels}, kernel_size={tuple(kernel)}, stride={self.stride}, padding={self.padding}"


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    spectral: bool,
    stride: int = 1,
    padding: int = 1,
    bias: bool = True,
) -> nn.Module:
    """A convolution with or without spectral normalisation."""
    kind = SpectralNormConv2d if spectral else nn.Conv2d
    return kind(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=0, eps=EPSILON)
