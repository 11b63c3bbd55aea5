"""Switched convolutions: several kernels, of which one, or a mixture, acts at each place of the output."""

from __future__ import annotations

from dlas.layers.switched.balance import NoisyRouter, balance_loss, switch_balance
from dlas.layers.switched.conv import SwitchedConv2d
from dlas.layers.switched.conversion import (
    switch_convolutions,
    switched_layers,
    unswitch_convolutions,
    with_copied_kernels,
)
from dlas.layers.switched.gate import Gate, SwitchNorm, route_top1
from dlas.layers.switched.product import switched_conv2d
from dlas.layers.switched.published import rename_state_dict
from dlas.layers.switched.selectors import MappingNetwork

__all__ = [
    "Gate",
    "MappingNetwork",
    "NoisyRouter",
    "SwitchNorm",
    "SwitchedConv2d",
    "balance_loss",
    "rename_state_dict",
    "route_top1",
    "switch_balance",
    "switch_convolutions",
    "switched_conv2d",
    "switched_layers",
    "unswitch_convolutions",
    "with_copied_kernels",
]
