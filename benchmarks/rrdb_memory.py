"""Peak memory and time of a step of RRDBNet at its published size (64 features, 23 blocks), by how activations are kept.

    python benchmarks/rrdb_memory.py [--side 64] [--rounds 5] [--rivals plain basicsr] [--ways ours lean recomputed]

One picture, L1, Adam (ours fused, as the trainer has it), fp32. The rivals are those of rrdb_step.py; ours are the network as
it is, with `lean: true`, and with `checkpointing_enabled`. Each has its own process. Prints a JSON line each: growth of the
process from before the network was made to its peak, weights, gradients and Adam's state (256 MiB) included; that over the
rival's; quartiles of the paired ratios of processor time, ours / rival's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from paired import Worker, describe_machine, quartiles
from peers.basicsr_rrdb import basicsr_rrdbnet
from plain_rrdb import PlainRRDBNet
from torch import nn

from dlas.archs.rrdb import RRDBNet
from dlas.engine.device import peak_memory_mb
from dlas.engine.host_memory import keep_freed_memory

RIVALS = ("plain", "basicsr")
OURS = ("ours", "lean", "recomputed")
PUBLISHED = {"nf": 64, "nb": 23}


def network_of(case: str) -> nn.Module:
    """The network, and for ours what the trainer sets for its process."""
    if case in RIVALS:
        return (PlainRRDBNet if case == "plain" else basicsr_rrdbnet)(**PUBLISHED)
    keep_freed_memory()
    network = RRDBNet(**PUBLISHED, lean=case == "lean")
    network.checkpointing = case == "recomputed"
    return network


def work(case: str, side: int) -> None:
    """What a worker does: for each number, that many steps, answered with milliseconds a step; for 0 the memory in MiB."""
    torch.set_num_threads(1)
    before = peak_memory_mb(torch.device("cpu"))
    network = network_of(case)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True if case in OURS else None)
    lq, hq = torch.rand(1, 3, side, side), torch.rand(1, 3, 4 * side, 4 * side)
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            optimizer.zero_grad()
            nn.functional.l1_loss(network(lq), hq).backward()
            optimizer.step()
        seconds = time.process_time() - start
        print(1e3 * seconds / int(line) if int(line) else peak_memory_mb(torch.device("cpu")) - before, flush=True)


def main() -> None:
    """Runs all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="of the low-resolution picture")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--ways", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.side)
        return
    rivals = [name for name in options.rivals if name != "basicsr" or importlib.util.find_spec("basicsr")]
    command = [sys.executable, __file__, "--side", str(options.side), "--work"]
    workers = {case: Worker([*command, case]) for case in (*rivals, *options.ways)}
    times: dict[str, list[float]] = {case: [] for case in workers}
    for worker in workers.values():
        worker.ask(2)  # warm-up
    for number in range(options.rounds):
        for case in list(workers) if number % 2 else reversed(workers):
            times[case].append(workers[case].ask(1))
    peaks = {case: worker.ask(0) for case, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    for rival in rivals:
        for case in options.ways:
            ratios = [ours / theirs for ours, theirs in zip(times[case], times[rival], strict=True)]
            figures = {
                "memory_ratio": round(peaks[case] / peaks[rival], 3),
                "time_ratio": quartiles(ratios),
                "ours_MiB": round(peaks[case]),
                "ours_ms": round(statistics.median(times[case])),
                "side": options.side,
                "rounds": options.rounds,
            }
            print(json.dumps({"case": f"rrdb memory: {case} / {rival}", **figures, **describe_machine()}), flush=True)


if __name__ == "__main__":
    main()
