"""One step's updates: judged on the device, and made only if they are good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlas.engine.distributed import Ranks
from dlas.engine.distributed.tensors import local
from dlas.engine.health.holding import HeldOptimizer
from dlas.engine.health.spikes import SpikeScore
from dlas.engine.waiting import waiting_meant

GOOD, SPIKE, GRADIENT, LOSS = 0, 1, 2, 3
"""What is wrong with an update; the larger number is told where several are."""


class UpdateGuard:
    """Judges the updates of one step and holds back bad ones, on all ranks alike.

    Bad are: a loss that is not finite in any micro-batch; a gradient that is not finite; where asked for, a spike. Under fp16 a
    gradient that overflows is the scaler's business: the update is held and the scale lowered, which is no event, unless the
    scale is below 1 already.

    Args:
        optimizer: of the step.
        scaler: of the step, where the precision is fp16.
        spikes: the score, where spikes are looked for.
        latch: a number on the device, shared by all steps: while it is not 0 every update is held; a bad one sets it. None: the
            host reads each verdict at once and holds what follows itself.
        ranks: the processes that must agree.
        device: of the parameters.

    Attributes:
        code: verdict on the last update: a number on the device, or on the host without a latch; None if none was due.
        held: whether what the last step did to buffers and weights must not count, likewise.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler | None,
        spikes: SpikeScore | None,
        latch: Tensor | None,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.optimizer = optimizer
        self.scaler = scaler
        self.spikes = spikes
        self.latch = latch
        self.ranks = ranks
        self.holder = HeldOptimizer(optimizer, overflows=scaler is not None)
        self.code: Tensor | int | None = None
        self.held: Tensor | bool = False
        self._loss: Tensor | None = None
        self._losses = ""
        self._one = torch.ones((), device=device)
        self._weights = torch.tensor([float(LOSS), float(GRADIENT)], device=device)

    @property
    def wants_norm(self) -> bool:
        """Whether `update` needs the gradient's norm."""
        return self.spikes is not None and self.spikes.gradient

    def begin(self, losses: str) -> None:
        """A step begins, in which the losses of these names are on."""
        self._losses = losses
        self._loss = None
        self.code = None
        self.held = False if self.latch is None else self.latch.clone()

    def watch(self, loss: Tensor) -> None:
        """Takes the detached loss of a micro-batch, times its share: their sum is not finite if one of them is not."""
        self._loss = loss if self._loss is None else self._loss + loss

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], norm: Tensor | None) -> None:
        """Judges, and updates the parameters if all is well.

        Args:
            gradients: unscaled; clipped or not.
            norm: before clipping; needed if `wants_norm`.
        """
        assert self._loss is not None
        flags = self._flags(gradients)
        self.ranks.any_(flags)
        if self.spikes is not None:
            values = self.ranks.mean_(self.spikes.values(self._loss, norm))
            accepted = flags.sum() == 0
            if self.latch is not None:
                accepted &= self.latch == 0
            spike = self.spikes.judge(self._losses, values, accepted)
            flags[0] = torch.maximum(flags[0], SPIKE * spike)  # of values that all ranks have in common
        if self.latch is None:
            with waiting_meant():
                code, overflow = flags.tolist()
            self.code, self.held = int(code), code != GOOD
            if not self.held and not overflow:
                self.optimizer.step()
        else:
            code = flags[0]
            self.code = code
            self.held = torch.maximum(code, self.latch)
            self.holder.step(torch.maximum(self.held, flags[1]).clamp(max=1))
            self.latch.copy_(self.held)
        if self.scaler is not None:
            self.scaler.update()

    def take(self, made: bool) -> None:
        """Takes an update that was made, or held back for a gradient that is not finite, by others: on all ranks alike."""
        assert self._loss is not None and self.latch is None
        self.code = GOOD if made else LOSS if self.ranks.any(not bool(self._loss.isfinite())) else GRADIENT
        self.held = not made

    def _flags(self, gradients: Sequence[Tensor]) -> Tensor:
        """(verdict, whether a gradient overflowed)."""
        assert self._loss is not None
        found = torch.zeros_like(self._one)
        by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for gradient in map(local, gradients):
            if gradient.layout is torch.strided and gradient.is_floating_point():
                by_type.setdefault((gradient.dtype, gradient.device), []).append(gradient)
            else:
                values = gradient.coalesce().values() if gradient.is_sparse else gradient
                found = torch.maximum(found, (~values.isfinite().all()).float().to(found.device))
        for (_, device), same in by_type.items():  # reads each number once; multiplying by one changes none
            there = found.to(device)  # the same tensor, but for networks that are elsewhere
            torch._amp_foreach_non_finite_check_and_unscale_(same, there, self._one.to(device))
            found = there.to(found.device)
        counts = found if self.scaler is None else found * (self.scaler.scale(self._one) < 1)
        verdict = (self._weights * torch.stack([(~self._loss.isfinite()).float(), counts])).amax()
        return torch.stack([verdict, found])
