"""What the batch-size optimiser by gradient direction responds to: the size of tensors, or noise?

    python benchmarks/gradient_direction.py

Gradients of eight weights are a constant plus independent noise. Prints the mean number of batches an update takes.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from torch import nn

from dlas.config.schema import BatchSizeOptimizerConfig
from dlas.engine.gathering import Gathering


def mean_batches(size: int, noise: float, literal_sign: bool = False, updates: int = 200) -> float:
    """Batches an update, on average, with weights of `size` entries."""
    generator = torch.Generator().manual_seed(0)
    named = {f"net.{number}.weight": nn.Parameter(torch.zeros(size)) for number in range(8)}
    config = BatchSizeOptimizerConfig(type="gradient_direction", literal_sign=literal_sign)
    gathering = Gathering(config, "step", named, seed=0, batch_size=1)
    signal = [torch.randn(size, generator=generator) for _ in named]
    found: list[int] = []
    iteration = 0
    while len(found) < updates:
        for parameter, direction in zip(named.values(), signal, strict=True):
            parameter.grad = direction + noise * torch.randn(size, generator=generator)
        count = gathering.take(iteration)
        iteration += 1
        if count:
            found.append(count)
    return statistics.mean(found)


def main() -> None:
    """Prints a table."""
    noises = (0.01, 0.3, 1.0, 4.0)
    print("entries", *(f"noise {noise:g}" for noise in noises), "literal sign, noise 1", sep=" | ")
    for size in (2, 16, 256, 4096):
        cells = [f"{mean_batches(size, noise):.1f}" for noise in noises]
        print(size, *cells, f"{mean_batches(size, 1.0, literal_sign=True):.1f}", sep=" | ")


if __name__ == "__main__":
    main()
