"""What a training needs to run any registered network on the inputs that it offers for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dlas.context import Context
from dlas.data.base import Dataset, Request, Sample
from dlas.injectors.base import State
from dlas.losses.base import Loss
from dlas.registry import ARCHS, DATASETS, LOSSES
from dlas.types import StateIn


@DATASETS.register("toy_inputs")
class ToyInputs(Dataset):
    """The positional inputs of a network's `tiny()`, already a batch; a function of index and position."""

    provides = ("input0", "input1", "input2", "input3", "input4", "input5", "input6", "input7")

    def __init__(self, phase: str, /, *, which: str) -> None:
        self.tiny = ARCHS.get(which).tiny

    def __len__(self) -> int:
        return 3

    def __getitem__(self, request: Request) -> Sample:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.index)
            inputs = self.tiny()[1]
        factor = 1 + 0.1 * float(request.rng().random())
        return {f"input{place}": _scaled(value, factor) for place, value in enumerate(inputs)}

    @staticmethod
    def collate(samples: Sequence[Sample], sources: Sequence[str]) -> dict[str, Any]:
        """The one sample, which is a batch."""
        (sample,) = samples
        return sample


def _scaled(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, Tensor) and value.is_floating_point() else value


@LOSSES.register("toy_mean_square")
class MeanSquare(Loss):
    """The mean square distance from 1 of every tensor in an entry of the state that depends on the weights."""

    def __init__(self, *, in_: StateIn) -> None:
        super().__init__()
        self.source = in_

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        return torch.stack([(t.float() - 1).square().mean() for t in _tensors(state[self.source]) if t.requires_grad]).sum()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)
