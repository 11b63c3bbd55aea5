"""Losses that keep all kernels of switched convolutions in use."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.context import Context
from dlas.errors import TrainingError
from dlas.layers.switched import Routed, balance_loss, switch_balance
from dlas.losses.base import Loss, State
from dlas.registry import LOSSES
from dlas.types import NonNegativeFloat, StateIn


@LOSSES.register("switch_balance")
class SwitchBalanceLoss(Loss):
    """The loss of the Switch Transformer, mean over layers: 1 where all kernels are used alike, up to their number. In float32.

    Args:
        switches: what the injector `switched_generator` wrote under its `switches`.

    Source: Fedus et al. 2021, "Switch Transformers" (arXiv:2101.03961), equation 4; its weight there is 0.01.
    """

    def __init__(self, *, switches: StateIn) -> None:
        super().__init__()
        self.switches = switches

    def forward(self, state: State, context: Context) -> Tensor:
        layers = _layers(state, self.switches)
        return torch.stack([switch_balance(each.shares, each.chosen) for each in layers]).mean()


@LOSSES.register("switch_load")
class SwitchLoadLoss(Loss):
    """Squared variances of how kernels are chosen and how surely, mean over layers with noisy routers. In float32.

    Args:
        switches: what the injector `switched_generator` wrote under its `switches`.
        load_weight: of the load: how surely each kernel would be chosen again under other noise.
        importance_weight: of what was chosen.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks" (arXiv:1701.06538), in the published form for switched
    convolutions; `balance_loss`.
    """

    def __init__(
        self, *, switches: StateIn, load_weight: NonNegativeFloat = 0.1, importance_weight: NonNegativeFloat = 0.1
    ) -> None:
        super().__init__()
        self.switches, self.load_weight, self.importance_weight = switches, load_weight, importance_weight

    def forward(self, state: State, context: Context) -> Tensor:
        layers = _layers(state, self.switches)
        if any(each.load is None for each in layers):
            raise TrainingError("switch_load: the network's routers tell no load; write 'router: noisy' under its 'switched'")
        return torch.stack([balance_loss(each, self.load_weight, self.importance_weight) for each in layers]).mean()


def _layers(state: State, key: str) -> list[Routed]:
    return [Routed(**layer) for layer in state[key].values()]
