"""Tables of numbers that are looked up on whatever device the samples are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from dlas.host import sent


@contextmanager
def on_host() -> Iterator[None]:
    """Tensors made within hold numbers, also where a run is rehearsed on tensors that have none."""
    with unset_fake_temporarily():
        yield


class Table:
    """Numbers that are copied to a device once: a copy at every use would wait for the device.

    Args:
        values: on the CPU.
    """

    def __init__(self, values: Tensor) -> None:
        self._copies = {values.device: values}
        self._values = values

    def on(self, device: torch.device) -> Tensor:
        """The numbers on a device."""
        if device not in self._copies:
            self._copies[device] = sent(self._values, device)
        return self._copies[device]
