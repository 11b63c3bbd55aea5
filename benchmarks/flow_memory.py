"""What the backward pass through one level of SRFlow's published shape holds, and its time, by how activations are kept.

    python benchmarks/flow_memory.py [--steps 4 16] [--side 40] [--rounds 3]

The finest level at 4X: 12 channels, 64 channels of the condition of its size and 256 of half of it, subnets of width 64. Prints
a JSON line for each number of steps: MiB of tensors saved for the backward pass, without the weights themselves, and the median
time of forward and backward on the processor in ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from torch import Tensor, nn

from dlas.layers.flow import ConditionalAffine, FlowStep
from dlas.layers.flow_level import Condition, Level, Memory


def measure(count: int, side: int, memory: Memory) -> tuple[float, float]:
    """MiB and ms of one pass."""
    torch.manual_seed(0)
    steps = nn.ModuleList(FlowStep(12, ConditionalAffine(12, 320, 64, 1e-4)) for _ in range(count)).eval()
    level = Level([step for step in steps if isinstance(step, FlowStep)])
    x, fine, coarse = (torch.randn(1, *shape) for shape in ((12, side, side), (64, side, side), (256, side // 2, side // 2)))
    own = {weight.untyped_storage().data_ptr() for weight in steps.parameters()}
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        z, log_density = level.encode(x.requires_grad_(), Condition(fine, coarse), memory)
    bytes_held = sum(held.values())
    (z.square().sum() - log_density.sum()).backward()
    return bytes_held / 2**20, (time.process_time() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--side", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for count in options.steps:
        line: dict[str, float] = {"steps": count}
        for memory in get_args(Memory):
            results = [measure(count, options.side, memory) for _ in range(options.rounds)]
            line |= {
                f"{memory}_MiB": round(results[0][0], 2),
                f"{memory}_ms": round(statistics.median(ms for _, ms in results)),
            }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
