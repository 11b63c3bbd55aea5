"""Switched convolutions: several kernels, of which one, or a mixture, acts at each place of the output."""

from __future__ import annotations

from dlas.layers.switched.balance import balance_loss, switch_balance
from dlas.layers.switched.conv import SwitchedConv2d
from dlas.layers.switched.conversion import (
    switch_convolutions,
    switched_layers,
    unswitch_convolutions,
    with_copied_kernels,
)
from dlas.layers.switched.gate import Gate, SwitchNorm
from dlas.layers.switched.product import switched_conv2d
from dlas.layers.switched.published import rename_state_dict
from dlas.layers.switched.routing import NoisyRouter, Routed, route_top1
from dlas.layers.switched.selectors import LambdaCoupler, MappingNetwork
from dlas.layers.switched.watch import set_temperature, watched

__all__ = [
    "Gate",
    "LambdaCoupler",
    "MappingNetwork",
    "NoisyRouter",
    "Routed",
    "SwitchNorm",
    "SwitchedConv2d",
    "balance_loss",
    "rename_state_dict",
    "route_top1",
    "set_temperature",
    "switch_balance",
    "switch_convolutions",
    "switched_conv2d",
    "switched_layers",
    "unswitch_convolutions",
    "watched",
    "with_copied_kernels",
]
