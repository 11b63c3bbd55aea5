"""Convolutions of one pixel with an invertible matrix, and the log-determinants of many of them.

Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS 2018 (arXiv:1807.03039), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTORS = ("lower", "upper", "log_scale", "permutation", "sign")


class InvertibleConv(nn.Module):
    """A 1x1 convolution with a square matrix, a rotation at first.

    Args:
        channels: coming in and going out.
        lu: learn P L (U + diag(s)), with a fixed permutation and fixed signs of s, in place of the matrix (Glow, equation 10).
            Weights of either kind load into the other.
    """

    weight: Tensor
    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, lu: bool = False) -> None:
        super().__init__()
        self.lu = lu
        matrix = torch.linalg.qr(torch.randn(channels, channels))[0].contiguous()
        if lu:
            factors = factorised(matrix)
            for name in ("lower", "upper", "log_scale"):
                self.register_parameter(name, nn.Parameter(factors[name]))
            for name in ("permutation", "sign"):
                self.register_buffer(name, factors[name])
        else:
            self.weight = nn.Parameter(matrix)

    @property
    def matrix(self) -> Tensor:
        """(channels, channels)."""
        return product(*(getattr(self, name) for name in FACTORS)) if self.lu else self.weight

    @property
    def inverse_matrix(self) -> Tensor:
        """Of `matrix`, inverted in float64. That there is one is not checked: the check would wait for the device."""
        return torch.linalg.inv_ex(self.matrix.double()).inverse.to(self.matrix.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return F.conv2d(x, self.matrix[:, :, None, None])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        names = FACTORS if self.lu else ("weight",)
        others = ("weight",) if self.lu else FACTORS
        if all(prefix + name in state_dict for name in others) and not any(prefix + name in state_dict for name in names):
            given = [state_dict.pop(prefix + name) for name in others]
            made = factorised(*given) if self.lu else {"weight": product(*(each.double() for each in given)).to(given[0].dtype)}
            state_dict.update({prefix + name: value for name, value in made.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)


def factorised(matrix: Tensor) -> dict[str, Tensor]:
    """The factors, in float64 on the way, whose `product` is a matrix (n, n): L and U without diagonals, ln |s|, P, sign s."""
    permutation, lower, upper = torch.linalg.lu(matrix.detach().double())
    diagonal = upper.diagonal()
    made = (lower.tril(-1), upper.triu(1), diagonal.abs().log(), permutation, diagonal.sign())
    return {name: value.to(matrix.dtype).contiguous() for name, value in zip(FACTORS, made, strict=True)}


def product(lower: Tensor, upper: Tensor, log_scale: Tensor, permutation: Tensor, sign: Tensor) -> Tensor:
    """The matrix of factors. Of `lower` and `upper` counts what is below and above the diagonal."""
    unit = torch.eye(len(sign), dtype=sign.dtype, device=sign.device)
    return permutation @ (lower.tril(-1) + unit) @ (upper.triu(1) + torch.diag(sign * log_scale.exp()))


def log_determinant(convs: Sequence[InvertibleConv]) -> Tensor:
    """ln |det| of the product of matrices of one size, all in one call; a scalar."""
    if all(conv.lu for conv in convs):
        return torch.stack([conv.get_parameter("log_scale") for conv in convs]).sum()
    return torch.linalg.slogdet(torch.stack([conv.matrix for conv in convs])).logabsdet.sum()
