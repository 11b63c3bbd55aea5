"""What the engine asks of a way to train in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from dlas.engine.distributed.ranks import Ranks


@dataclass(frozen=True)
class Update:
    """An update that a strategy has made in the optimiser's place.

    Args:
        made: whether it was; it is not if a gradient is not finite.
        norm: of the gradient, over all parameters and ranks, before it was clipped.
    """

    made: bool
    norm: float


class GradientExchange(Protocol):
    """Makes the gradients of one step their mean over all ranks."""

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Forward and backward of a micro-batch run within it; only in the last one of a batch may gradients travel.

        Where the step updates nothing there are no gradients, and this is all that is called.
        """

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """The total loss of a micro-batch: what `run` returns, which does all of its forward pass."""

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a micro-batch."""

    def finish(self) -> None:
        """After the backward pass of the last micro-batch: returns when the gradients are those of the whole batch."""

    def update(self) -> Update | None:
        """Clips gradients and updates the parameters; None: it is left to the step, whose parameters have their gradients."""


class Strategy(Protocol):
    """One of several ways to train in several processes. The engine does not know which one runs.

    Networks stay what they are, without a wrapper: injectors and losses call any method of any of them, any number of times.

    Attributes:
        ranks: the processes.
        evaluating: the processes that share an evaluation; a single one where each evaluates everything.
        whole: whether every process holds all weights. Where it does not, a step cannot be run again by one process alone.
    """

    ranks: Ranks
    evaluating: Ranks
    whole: bool

    def spread(self, networks: Mapping[str, nn.Module]) -> None:
        """Makes trained networks alike on all ranks or cuts them up among them, in place, before optimisers are made."""

    def exchange(
        self, step: str, named: Mapping[str, nn.Parameter], optimizer: Optimizer, clip_norm: float
    ) -> GradientExchange:
        """For a step that trains the parameters `named` by an optimiser, clipping their gradient to a norm (0: not)."""

    def any_rank(self, flag: bool) -> bool:
        """Whether a flag is set on any rank, before `finish`; of this one where others cannot be asked by then."""

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Gives buffers that an iteration has changed (running statistics) the values that they have on rank 0."""

    def gathered(self, state: Any) -> Any:
        """A nested state with whole tensors on rank 0; on others what is there."""
