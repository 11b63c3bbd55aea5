"""What injectors and losses may know of the step they run in: networks by name, the step number, and addressable randomness."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dlas.host import sent

_MASK = (1 << 64) - 1
_FEW = 256
"""Numbers a sample that the host has drawn before a GPU has begun to, which takes a kernel for each sample."""


def mix_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and names, well mixed (SplitMix64 finaliser: Steele et al., OOPSLA 2014, section 2)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def _unseen(name: str, value: Tensor, weight: float | Tensor) -> None:
    """Takes figures where nobody looks at them."""


class Averages(Protocol):
    """Averages of a network's weights."""

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by the names they have in the network's modules."""


@runtime_checkable
class ShardedAverages(Protocol):
    """Averages that are cut up among processes as the network is: no tensors can stand in for its own."""

    def run(self, *inputs: Any, **options: Any) -> Any:
        """Calls the network with its averaged weights; without gradients."""


@dataclass
class Context:
    """Given to every injector and loss of a micro-batch.

    Args:
        networks: the run's networks by name.
        trained: names of the networks that the running step trains (none in evaluation).
        step: number of completed optimiser steps.
        training: False in evaluation.
        seed: seed of the run.
        positions: position of each sample of the micro-batch in the run's endless sample order.
        averages: averages of networks' weights by name of the network, where the run keeps them; none in evaluation.
        log: takes a figure for the log line: its name, a detached scalar, and how much it counts among those of other
            micro-batches, as a number or a scalar on the device; of no weight at all it is left out. Nowhere in evaluation.
    """

    networks: Mapping[str, nn.Module]
    trained: Sequence[str] = ()
    step: int = 0
    training: bool = True
    seed: int = 0
    positions: Sequence[int] = field(default_factory=list)
    averages: Mapping[str, Averages | ShardedAverages] = field(default_factory=dict)
    log: Callable[[str, Tensor, float | Tensor], None] = _unseen

    def network(self, name: str) -> nn.Module:
        """The network called `name`."""
        return self.networks[name]

    def device(self, network: str) -> torch.device:
        """Where a network's results are, which may be elsewhere than its weights."""
        found = self.network(network)
        home = getattr(found, "home_device", None)
        return home if isinstance(home, torch.device) else next(found.parameters()).device

    def randn(self, shape: Iterable[int], stream: str, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal noise, float32, shape (batch, *shape).

        Each sample's noise depends only on (seed, its position in the sample order, stream): it is the same however the batch
        is cut into micro-batches or spread over ranks, and after a resume. Up to 256 numbers a sample are the same on every
        kind of device, too.
        """
        return self._per_sample(torch.randn, shape, stream, device)

    def rand(self, shape: Iterable[int], stream: str, device: torch.device | str = "cpu") -> Tensor:
        """Uniform noise in [0, 1), float32, shape (batch, *shape); addressable like `randn`."""
        return self._per_sample(torch.rand, shape, stream, device)

    def _per_sample(self, draw: Callable[..., Tensor], shape: Iterable[int], stream: str, device: torch.device | str) -> Tensor:
        shape = tuple(shape)
        drawn_on = "cpu" if math.prod(shape) <= _FEW else device
        generator = torch.Generator(drawn_on)
        out = torch.empty((len(self.positions), *shape), device=drawn_on)
        for row, position in zip(out, self.positions, strict=True):
            generator.manual_seed(mix_seed(self.seed, position, stream))
            draw(shape, generator=generator, device=drawn_on, out=row)
        return sent(out, device)
