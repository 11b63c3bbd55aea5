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
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")
        return found


class PackedPointwise(nn.Module):
    """A convolution of sequences with kernel 1, as a packed linear layer.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.linear = PackedLinear(conv.weight[..., 0], conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) -> (B, out, T)."""
        return self.linear(x.transpose(1, 2)).transpose(1, 2)


def can_pack(weight: Tensor) -> bool:
    """Whether this PyTorch packs it: a weight on the CPU, in float32."""
    possible = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return possible and weight.device.type == "cpu" and weight.dtype == torch.float32


def packed(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer of (out, in) and (out,): packed where that can be, else a plain one."""
    if can_pack(weight):
        return PackedLinear(weight, bias)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return plain


def pack_linear_layers(network: nn.Module) -> nn.Module:
    """Packs the linear layers and convolutions of kernel 1 of a network, in place, for inference, where that can be.

    The original weights are let go, so that memory is that of one copy; the network has no state for them any more.
    """
    for module in network.modules():
        for name, layer in module.named_children():
            if not isinstance(layer, nn.Linear | LinearInOut | nn.Conv1d) or not can_pack(layer.weight):
                continue
            if isinstance(layer, nn.Linear | LinearInOut):
                weight = layer.weight.T if isinstance(layer, LinearInOut) else layer.weight
                setattr(module, name, PackedLinear(weight, layer.bias))
            elif layer.kernel_size == layer.stride == (1,) and layer.groups == 1:
                setattr(module, name, PackedPointwise(layer))
    return network
