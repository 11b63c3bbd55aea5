"""Normalisation of the tokens of a transformer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenNorm(nn.Module):
    """Normalises the channels of each token, and says itself what that is computed in, under autocast too.

    Args:
        channels: of a token.
        kind: `layer`, which subtracts the mean (Ba et al. 2016, arXiv:1607.06450), or `rms`, which does not (Zhang and
            Sennrich 2019, arXiv:1910.07467).
        affine: channels have learned factors, and offsets if of kind `layer`.
        low_precision: compute in autocast's precision. Otherwise in float32 at least, and the result has the input's type.
        eps: added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        channels: int,
        kind: Literal["layer", "rms"] = "layer",
        affine: bool = True,
        low_precision: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if kind not in ("layer", "rms"):
            raise ValueError(f"tokens are normalised by 'layer' or 'rms', got {kind!r}")
        self.kind, self.low_precision, self.eps = kind, low_precision, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine and kind == "layer" else None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same shape."""
        device = x.device.type
        if not self.low_precision:
            dtype = torch.promote_types(x.dtype, torch.float32)
        else:
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        weight = None if self.weight is None else self.weight.to(dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(device, enabled=False):
            if self.kind == "layer":
                result = F.layer_norm(x.to(dtype), x.shape[-1:], weight, bias, self.eps)
            else:
                result = F.rms_norm(x.to(dtype), x.shape[-1:], weight, self.eps)
        return result if self.low_precision else result.to(x.dtype)
