"""A convolution with several kernels, and what chooses among them."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.switched.gate import DropoutForm, Gate, NormForm
from dlas.layers.switched.product import switched_conv2d
from dlas.layers.switched.routing import RouterForm
from dlas.layers.switched.selectors import LambdaCoupler, MappingNetwork

Selector: TypeAlias = Literal["coupler", "lambda", "lambda2", "mapping", "outside"]
"""coupler: a 1x1 convolution of the layer. lambda, lambda2: a `LambdaCoupler` with one lambda layer, or two. mapping: a
`MappingNetwork` of the layer. outside: logits are given to `forward`."""


class SwitchedConv2d(nn.Module):
    """A convolution with `breadth` kernels, of which one (hard) or a mixture (soft) acts at each place of the output.

    The published forms: 2020, soft, is ``selector="mapping", bias="each"`` with a temperature, and may have
    ``norm="sum_to_one", norm_window=128``; 2021, soft, is ``hard=False``; 2021, hard, is ``norm="sum_to_one"`` in the
    stand-alone repository and ``norm="rescaled"`` in DL-Art-School. Names of weights are those of the hard form;
    `rename_state_dict` turns the others into them.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd.
        breadth: number of kernels.
        stride: of the convolution.
        padding: zeros on each side; None: half the kernel.
        bias: one for all kernels, one for each, or none.
        hard: one kernel for each place, with the gradient of `route_top1`.
        selector: where logits come from; `Selector`.
        selector_channels: of the features that the coupler or mapping network sees; None: `in_channels`.
        norm: form of `SwitchNorm`; None: without.
        norm_window: its memory, in training passes.
        dropout: probability with which a kernel is out of a sample's choice.
        dropout_form: what such a kernel has instead of its logit.
        temperature: divides the logits; `gate.temperature` may be changed in training.
        router: how the winner is found; `RouterForm`.

    Raises:
        ValueError: the kernel is even, or an option has no such value.

    Source: Betker 2021, "Switched Convolutions - Spatial MoE for Convolutions", and its published implementations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        breadth: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: Literal["shared", "each", "none"] = "shared",
        hard: bool = True,
        selector: Selector = "coupler",
        selector_channels: int | None = None,
        norm: NormForm | None = None,
        norm_window: int = 256,
        dropout: float = 0.0,
        dropout_form: DropoutForm = "zero",
        temperature: float = 1.0,
        router: RouterForm = "largest",
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"a switched convolution has a kernel of odd size, got {kernel_size}")
        if bias not in ("shared", "each", "none"):
            raise ValueError(f"bias of a switched convolution is 'shared', 'each' or 'none', got {bias!r}")
        self.stride, self.padding, self.hard = stride, kernel_size // 2 if padding is None else padding, hard
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, breadth, kernel_size, kernel_size))
        biases = (out_channels,) if bias == "shared" else (breadth, out_channels)
        self.bias = None if bias == "none" else nn.Parameter(torch.empty(biases))
        features = in_channels if selector_channels is None else selector_channels
        self.coupler: nn.Module | None = None
        if selector == "coupler":
            self.coupler = nn.Conv2d(features, breadth, 1)
        elif selector in ("lambda", "lambda2"):
            self.coupler = LambdaCoupler(features, breadth, layers=2 if selector == "lambda2" else 1)
        elif selector == "mapping":
            self.coupler = MappingNetwork(features, breadth)
        elif selector != "outside":
            known = ", ".join(map(repr, get_args(Selector)))
            raise ValueError(f"a switched convolution has the selectors {known}, got {selector!r}")
        self.gate = Gate(
            breadth,
            hard=hard,
            norm=norm,
            norm_window=norm_window,
            dropout=dropout,
            dropout_form=dropout_form,
            temperature=temperature,
            router=router,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each kernel is drawn as that of a plain convolution."""
        _, in_channels, _, height, width = self.weight.shape
        bound = 1 / math.sqrt(in_channels * height * width)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, selector: Tensor | None = None) -> Tensor:
        """The convolution.

        Args:
            x: (B, in_channels, H, W).
            selector: features for the coupler or mapping network, (B, selector_channels, h, w), by default `x`; with
                ``selector="outside"`` the logits, (B, breadth, h, w). Logits of another size than the output's are repeated
                or left out by nearest neighbour.

        Returns:
            (B, out_channels, H', W').
        """
        return switched_conv2d(
            x, self.weight, self.shares(x, selector), self.bias, stride=self.stride, padding=self.padding, hard=self.hard
        )

    def shares(self, x: Tensor, selector: Tensor | None = None) -> Tensor:
        """How much each kernel takes part at each place of the output, (B, breadth, H', W'); arguments as of `forward`."""
        if self.coupler is not None:
            logits = self.coupler(x if selector is None else selector)
        elif selector is None:
            raise ValueError("a switched convolution whose selector is outside needs logits: call it with (x, logits)")
        else:
            logits = selector
        size = [(edge + 2 * self.padding - self.weight.shape[-1]) // self.stride + 1 for edge in x.shape[2:]]
        if self.hard and logits.shape[2:] == x.shape[2:] and self.padding == self.weight.shape[-1] // 2:
            logits = logits[:, :, :: self.stride, :: self.stride]  # the middles of the neighbourhoods, at odd sizes too
        elif list(logits.shape[2:]) != size:
            logits = F.interpolate(logits, size=size, mode="nearest")
        return self.gate(logits)
