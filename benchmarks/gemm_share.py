"""Which share of a large matrix product's speed a training step of RRDBNet reaches in bfloat16, and where the rest goes.

    python benchmarks/gemm_share.py [--rounds 9] [--nf 32] [--nb 4] [--batch 4] [--side 32] [--precision bf16]

The step of step_overhead.py's hand-written loop, in channels last and on one thread, in turn with a product of two matrices of
1024 x 1024 in the same precision. Prints a JSON line: both in 10^9 floating-point operations a second of processor time
(those of convolutions, in forward and backward; a multiply-add is two), quartiles of their paired ratio, and by a profile of
three steps the share of time of each kind of operation and what the convolutions would reach if there were nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from paired import describe_machine, quartiles
from step_overhead import bare_loop
from torch.profiler import ProfilerActivity, profile

from dlas.archs import create_network
from dlas.engine.flops import FlopCounter

KINDS = {
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::conv_transpose2d"),
    "conversions": ("aten::copy_", "aten::contiguous", "aten::clone"),
    "concatenations": ("aten::cat",),
    "optimizer": ("aten::_fused_adam_",),
}
"""Operations by kind, under the names of profiles. All others are on each element: activations, sums, enlargement, loss."""
SIZE = 1024


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def kinds_of_time(work: Callable[[], object]) -> dict[str, float]:
    """Shares of the time within operations, by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    names = {name: kind for kind, members in KINDS.items() for name in members}
    spent: Counter[str] = Counter()
    for row in profiler.key_averages():
        if row.key.startswith("aten::"):
            spent[names.get(row.key, "elementwise")] += row.self_cpu_time_total
    return {kind: round(spent[kind] / spent.total(), 3) for kind in (*KINDS, "elementwise")}


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"rounds": 9, "nf": 32, "nb": 4, "batch": 4, "side": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    network = create_network({"which_model": "RRDBNet", "nf": asked.nf, "nb": asked.nb, "gc": 32, "scale": 4})
    step = bare_loop(network, asked.side, 4, asked.precision, torch.channels_last, asked.batch)
    left = torch.ones(SIZE, SIZE, dtype=torch.bfloat16 if asked.precision == "bf16" else torch.float32)
    with FlopCounter() as counter:
        step(1)
    left @ left
    reached, peak = [], []
    for _ in range(asked.rounds):
        reached.append(counter.total / seconds(lambda: step(1)) / 1e9)
        peak.append(2 * SIZE**3 * 8 / seconds(lambda: [left @ left for _ in range(8)]) / 1e9)
    kinds = kinds_of_time(lambda: step(3))
    share = quartiles([mine / best for mine, best in zip(reached, peak, strict=True)])
    figures = {
        "share": share,
        "step_gflops": round(statistics.median(reached)),
        "product_gflops": round(statistics.median(peak)),
    }
    figures |= {"time": kinds, "convolutions_alone": round(share[1] / kinds["convolutions"], 3)}
    case = f"share of a matrix product's speed: RRDB nf {asked.nf} nb {asked.nb}, {asked.precision}"
    print(json.dumps({"case": case, **figures, "rounds": asked.rounds, **describe_machine()}))


if __name__ == "__main__":
    main()
