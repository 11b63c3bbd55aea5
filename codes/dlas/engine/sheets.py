"""Sheets of a whole set: a grid of what a network makes, and how its pictures come about."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlas.config.schema import EvalConfig
from dlas.engine.distributed import Ranks
from dlas.engine.evaluate import Evaluated
from dlas.observe.pictures import grid

GRID = 64
"""Pictures of a grid where nothing is said and there are no input pictures."""


class Sheets:
    """Collects the first pictures of a set.

    Args:
        section: says how many.
    """

    def __init__(self, section: EvalConfig) -> None:
        self.section = section
        self._pictures: dict[str, dict[int, Tensor]] = {}
        self._strips: dict[str, dict[int, Tensor]] = {}

    def add(self, result: Evaluated) -> None:
        """Takes a picture's result."""
        size = self.section.grid
        if size is None:
            size = GRID if result.input is None else 0
        if result.position < size:
            self._pictures.setdefault(f"{result.prefix}grid", {})[result.position] = result.output[0]
        for key, strip in result.strips.items():
            self._strips.setdefault(f"{result.prefix}{key}", {})[result.position] = strip

    def merge(self, ranks: Ranks) -> None:
        """Takes in what the sheets of the other processes have."""
        for pictures, strips in ranks.gather((self._pictures, self._strips)) if ranks.many else ():
            for own, others in ((self._pictures, pictures), (self._strips, strips)):
                for name, each in others.items():
                    own.setdefault(name, {}).update(each)

    def draw(self) -> dict[str, Tensor]:
        """The sheets by name, (3, H, W) in [0, 1]: `grid`, and one for each key of `eval.strips`."""
        sheets = {name: grid(_alike([each[k] for k in sorted(each)])) for name, each in self._pictures.items()}
        for name, strips in self._strips.items():
            rows = [strips[place] for place in sorted(strips)]
            steps = max(map(len, rows))
            cells = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, steps - len(row)), value=1.0) for row in rows]
            sheets[name] = grid(_alike([cell for row in cells for cell in row]), columns=steps)
        return sheets


def _alike(pictures: list[Tensor]) -> Tensor:
    """Pictures (C, h, w) as one batch, with white below and on the right of smaller ones."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (-2, -1))
    padded = (F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2]), value=1.0) for p in pictures)
    return torch.stack(list(padded))
