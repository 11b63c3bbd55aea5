"""Bringing batches to the device while it still works on the one before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlas.engine.microbatch import to_device


class Transfer:
    """Moves the batches of a run to its device; images take the memory format.

    On CUDA the copies go through a stream of their own. The loop runs ahead of the device, so that the device copies a batch
    while it computes the iteration before; that iteration's stream waits for the copy, the host for nothing. Batches that are
    not in pinned memory are copied while the host waits, but not for the computation. Elsewhere the copies are made in order.

    Args:
        device: of the run.
        layout: memory format of images.
    """

    def __init__(self, device: torch.device, layout: torch.memory_format) -> None:
        self.device = device
        self.layout = layout
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, to be used in the present stream."""
        if self._stream is None:
            return to_device(batch, self.device, self.layout)
        training = torch.cuda.current_stream(self.device)
        if any(isinstance(value, Tensor) and not value.is_cpu for value in batch.values()):
            self._stream.wait_stream(training)  # which has written it
        with torch.cuda.stream(self._stream):
            moved = to_device(batch, self.device, self.layout)
        training.wait_stream(self._stream)
        for value in moved.values():
            if isinstance(value, Tensor):  # its memory belongs to the copying stream: not to be reused before training is done
                value.record_stream(training)
        return moved
