"""Training in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dlas.engine.distributed.ranks import Ranks


class NoExchange:
    """The gradients are those of the whole batch already."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Nothing more happens within it."""
        del last
        return nullcontext()

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """It runs."""
        return run()

    def backward(self, loss: Tensor) -> None:
        """Autograd's."""
        loss.backward()

    def finish(self) -> None:
        """There is nothing to finish."""

    def update(self) -> None:
        """It is the step's."""


class Single:
    """One process; everything costs nothing. See `Strategy`."""

    def __init__(self) -> None:
        self.ranks = self.evaluating = Ranks()
        self.whole = True

    def spread(self, networks: Mapping[str, nn.Module]) -> None:
        """They stay as they are."""

    def exchange(self, step: str, named: Mapping[str, nn.Parameter], optimizer: Optimizer, clip_norm: float) -> NoExchange:
        """None is needed."""
        del step, named, optimizer, clip_norm
        return NoExchange()

    def any_rank(self, flag: bool) -> bool:
        """The flag."""
        return flag

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """They are shared by nobody."""

    def gathered(self, state: Any) -> Any:
        """The state."""
        return state
