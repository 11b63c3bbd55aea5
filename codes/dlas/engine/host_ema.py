"""Averages in host memory, of networks on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlas.engine.ema import ModelEma
from dlas.engine.ema_profiles import Profile

_CPU = torch.device("cpu")


@dataclass
class _Arriving:
    """Weights on their way to the host.

    Args:
        rate: share of the old average that stays.
        held: above 0 if the network's update was held back; likewise on its way.
        arrival: when all is there; None where it is there already.
    """

    rate: float
    held: Tensor
    arrival: torch.cuda.Event | None


class HostEma(ModelEma):
    """As `ModelEma`, with the averages in host memory.

    An update queues a copy of the weights into page-locked memory, behind what the GPU does now. It is taken into the averages
    at the next update, or when they are asked for: by then it has arrived, and the GPU works on the next iteration meanwhile.

    Args:
        network: as for `ModelEma`.
        rate: as for `ModelEma`.
    """

    def __init__(self, network: nn.Module, *, rate: float | Profile) -> None:
        self._arriving: _Arriving | None = None
        super().__init__(network, rate=rate, device=_CPU)
        self._pinned = any(slot.tensor.is_cuda for slot in self._slots)
        self._copies = [torch.empty_like(slot.tensor, device=_CPU, pin_memory=self._pinned) for slot in self._slots]
        self._held = torch.zeros((), pin_memory=self._pinned)

    @property
    def _averages(self) -> list[Tensor]:
        """With all that is on its way."""
        self._settle()
        return self._kept

    @_averages.setter
    def _averages(self, averages: list[Tensor]) -> None:
        self._kept = averages

    @torch.no_grad()
    def update(self, step: int, held: Tensor | bool = False) -> None:
        """See `ModelEma.update`."""
        if held is True:
            return
        self._settle()
        for copy, slot in zip(self._copies, self._slots, strict=True):
            copy.copy_(slot.tensor, non_blocking=self._pinned)
        self._held.copy_(torch.as_tensor(held), non_blocking=self._pinned)
        device = next((slot.tensor.device for slot in self._slots if slot.tensor.is_cuda), None)
        arrival = None
        if device is not None:
            arrival = torch.cuda.Event()
            arrival.record(torch.cuda.current_stream(device))
        self._arriving = _Arriving(self.rate(step), self._held, arrival)

    @torch.no_grad()
    def _settle(self) -> None:
        if self._arriving is None:
            return
        arriving, self._arriving = self._arriving, None
        if arriving.arrival is not None:
            arriving.arrival.synchronize()
        if not arriving.held:
            self._take(self._kept, self._copies, arriving.rate)
