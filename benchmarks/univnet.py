"""The vocoder's real-time factor, and how it compares with the straightforward module.

    python benchmarks/univnet.py [--frames 94] [--rounds 7]

The published shape (32 channels, strides 8, 8, 4, 24 kHz) with random weights, a second of sound. The straightforward module
computes its weights from direction and length at each use, and convolves every frame with its own kernel by unfolded windows
and one `einsum`, as the paper's public implementation does. Sounds are compared first. One thread; the two take turns, and the
order changes each round; processor time counts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.archs.speech import univnet

RATE = 24000


def by_einsum(x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """Each window of each frame times the frame's kernel."""
    frames, size = kernels.shape[1], kernels.shape[-1]
    hop = x.shape[-1] // frames
    windows = F.pad(x, (size // 2, size // 2)).unfold(2, hop + size - 1, hop).unfold(3, size, 1)  # (B, in, T, hop, size)
    found = torch.einsum("bitsk,btoik->bots", windows, kernels) + biases[..., None]
    return found.flatten(2)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=94, help="of 256 samples")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = univnet.UnivNet().eval().requires_grad_(False)
    own = copy.deepcopy(plain).fold()
    mel, z = torch.randn(1, 100, arguments.frames) - 4, torch.randn(1, 64, arguments.frames + univnet.TAIL)

    def straightforward() -> Tensor:
        replaced = {"location_variable_convolution": by_einsum, "_tanh": torch.tanh}
        with mock.patch.multiple(univnet, **replaced):
            return plain.inference(mel, z)

    ways = {"own": lambda: own.inference(mel, z), "straightforward": straightforward}
    torch.testing.assert_close(ways["own"](), ways["straightforward"](), rtol=1e-4, atol=1e-4)
    factors: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        for name in list(ways) if number % 2 else reversed(ways):
            begun = time.process_time()
            ways[name]()
            factors[name].append((time.process_time() - begun) / (arguments.frames * own.hop_length / RATE))
    line = {f"{name}_real_time_factor": round(statistics.median(values), 3) for name, values in factors.items()}
    ratios = [theirs / ours for theirs, ours in zip(factors["straightforward"], factors["own"], strict=True)]
    print(json.dumps(line | {"times_straightforward": round(statistics.median(ratios), 2)}))


if __name__ == "__main__":
    main()
