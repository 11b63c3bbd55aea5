"""Linear layers for inference on the CPU, whose weights lie as oneDNN reads them fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlas.layers.gpt2 import LinearInOut

ROWS = 4
"""Rows of the input that weights are laid out for: best for 4 to 16, and for one row better than the layout for one."""


class PackedLinear(nn.Module):
    """What a linear layer computes, without gradient and without a state of its own.

    Args:
        weight: (out, in), float32, on the CPU.
        bias: (out,), if any.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.bias = None if bias is None else bias.detach()
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return found


def can_pack() -> bool:
    """Whether this PyTorch has the operations."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def pack_linear_layers(network: nn.Module) -> nn.Module:
    """Packs the linear layers of a network, in place, for inference on the CPU.

    Those that are not float32 stay: oneDNN computes them anyway. Where PyTorch cannot pack, all stay. The original weights are
    let go, so that memory is that of one copy; the network has no state for them any more.
    """
    if not can_pack():
        return network
    for module in network.modules():
        for name, layer in module.named_children():
            if not isinstance(layer, nn.Linear | LinearInOut) or layer.weight.dtype != torch.float32:
                continue
            weight = layer.weight.T if isinstance(layer, LinearInOut) else layer.weight
            setattr(module, name, PackedLinear(weight, layer.bias))
    return network
