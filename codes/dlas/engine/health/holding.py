"""Optimiser updates that a flag on the device holds back, without the host waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlas.engine.waiting import waiting_meant

Undo = Callable[[], None]


class HeldOptimizer:
    """Makes an optimiser's updates dependent on a flag on the device.

    Fused optimisers of torch take the flag into their kernel. Others update, and then every tensor keeps its old value where
    the flag says so. What optimisers count on the host (numbers in their state or groups, tensors on the CPU) goes on in any
    case and is put right by `undo`, once the host knows. A parameter's first update makes its state; for that one the host
    waits.

    Args:
        optimizer: the optimiser.
        overflows: updates may also be held for reasons that the host never learns (the gradient scaler's). An optimiser that is
            not fused then has to wait for each verdict, as it has to with the scaler alone.
    """

    def __init__(self, optimizer: Optimizer, overflows: bool = False) -> None:
        self.optimizer = optimizer
        self.overflows = overflows
        self._begun: set[int] = set()  # parameters that were updated before
        self._undo: deque[list[Undo]] = deque()

    @torch.no_grad()
    def step(self, hold: Tensor) -> None:
        """One update, unless `hold` (one float32 number on the parameters' device) is not 0."""
        self._undo.append([])
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        fused = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        if (self.overflows and not fused) or any(id(p) not in self._begun for p in trained):
            with waiting_meant():
                if hold.item() == 0:
                    self.optimizer.step()
                    self._begun.update(id(p) for p in trained)
        elif fused:
            self._step_in_kernel(hold)
        else:
            self._step_and_choose(trained, hold)

    def undo(self) -> None:
        """The newest update not undone or settled yet was held: what it counted on the host is taken back."""
        for each in reversed(self._undo.pop()):
            each()

    def settle(self) -> None:
        """The oldest update not undone or settled yet was made."""
        self._undo.popleft()

    def _step_in_kernel(self, hold: Tensor) -> None:
        # The attributes are torch's protocol between GradScaler and its fused optimisers; gradients are unscaled already.
        optimizer: Any = self.optimizer
        optimizer.grad_scale, optimizer.found_inf = None, hold
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf

    def _step_and_choose(self, trained: list[Tensor], hold: Tensor) -> None:
        state = self.optimizer.state
        groups = [dict(group) for group in self.optimizer.param_groups]
        on_device: list[tuple[dict[str, Any], str, Tensor]] = []
        on_host: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for p in trained:
            entries = state[p]
            values = dict(entries)
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.device == hold.device:
                    on_device.append((entries, key, value))
                    del values[key]
                elif isinstance(value, Tensor):
                    values[key] = value.clone()
            on_host.append((entries, values))
        kept = _copies([*trained, *(tensor for _, _, tensor in on_device)])
        self.optimizer.step()
        held = hold != 0
        for parameter, old in zip(trained, kept, strict=False):
            torch.where(held, old, parameter, out=parameter)
        for (entries, key, tensor), old in zip(on_device, kept[len(trained) :], strict=True):
            torch.where(held, old, entries[key], out=tensor)
            entries[key] = tensor
        undo = self._undo[-1]
        for entries, values in on_host:
            changed = {key: value for key, value in values.items() if entries.get(key) is not value}
            if changed:
                undo.append(lambda entries=entries, changed=changed: entries.update(changed))  # type: ignore[misc]
        for group, before in zip(self.optimizer.param_groups, groups, strict=True):
            changed = {key: value for key, value in before.items() if key != "params" and group[key] is not value}
            if changed:
                undo.append(lambda group=group, changed=changed: group.update(changed))  # type: ignore[misc]


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies; those of one type are made by one kernel."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for copy, tensor in zip(copies, tensors, strict=True):
        targets, sources = by_type.setdefault(tensor.dtype, ([], []))
        targets.append(copy)
        sources.append(tensor)
    for targets, sources in by_type.values():
        torch._foreach_copy_(targets, sources)
    return copies
