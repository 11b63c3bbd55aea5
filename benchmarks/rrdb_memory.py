"""Peak memory and time of a step of RRDBNet at its published size (64 features, 23 blocks), by how activations are kept.

    python benchmarks/rrdb_memory.py [--peers FOLDER] [--side 64] [--rounds 5]
        [--rivals plain basicsr] [--ways ours lean recomputed recomputed_lean]

One picture, L1, Adam (ours fused, as the trainer has it), fp32. The rivals are those of rrdb_step.py; ours are the network as
it is, with `lean: true`, with `checkpointing_enabled`, and with both. Each has its own process. Prints a JSON line each: growth
of the process from after a step of a tiny network, with which all libraries are loaded, to its peak, weights, gradients and
Adam's state included (`state_MiB`, which no way of keeping activations saves); that over the rival's; quartiles of the paired
ratios of processor time, ours / rival's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from paired import Worker, describe_machine, in_turn, quartiles
from peers.networks import FOLDERS, available
from rrdb_step import rival_network
from torch import nn

from dlas.archs.rrdb import RRDBNet
from dlas.engine.device import peak_memory_mb
from dlas.engine.host_memory import keep_freed_memory

RIVALS = ("plain", *FOLDERS)
OURS = ("ours", "lean", "recomputed", "recomputed_lean")
PUBLISHED = {"nf": 64, "nb": 23}


def training(case: str, peers: Path | None, nf: int, nb: int, side: int) -> Callable[[], None]:
    """What takes a step of a network as wide and deep as told."""
    if case in RIVALS:
        network = rival_network(case, peers, nf, nb)
    else:
        network = RRDBNet(nf=nf, nb=nb, lean=case.endswith("lean"))
        network.checkpointing = case.startswith("recomputed")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True if case in OURS else None)
    lq, hq = torch.rand(1, 3, side, side), torch.rand(1, 3, 4 * side, 4 * side)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.l1_loss(network(lq), hq).backward()
        optimizer.step()

    return step


def work(case: str, peers: Path | None, side: int) -> None:
    """What a worker does: for each number, that many steps, answered with milliseconds a step; for 0 the memory in MiB."""
    torch.set_num_threads(1)
    if case in OURS:  # as the trainer has it
        keep_freed_memory()
    training(case, peers, 8, 1, 8)()
    before = peak_memory_mb(torch.device("cpu"))
    step = training(case, peers, **PUBLISHED, side=side)
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            step()
        seconds = time.process_time() - start
        print(1e3 * seconds / int(line) if int(line) else peak_memory_mb(torch.device("cpu")) - before, flush=True)


def main() -> None:
    """Runs all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with clones of the programs")
    parser.add_argument("--side", type=int, default=64, help="of the low-resolution picture")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=["plain", "basicsr"])
    parser.add_argument("--ways", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.peers, options.side)
        return
    rivals = [name for name in options.rivals if name in ("plain", *available(options.peers))]
    command = [sys.executable, __file__, "--side", str(options.side)]
    command += [*(["--peers", str(options.peers.resolve())] if options.peers else []), "--work"]
    workers = {case: Worker([*command, case]) for case in (*rivals, *options.ways)}
    for worker in workers.values():
        worker.ask(2)  # warm-up
    times = in_turn(workers, options.rounds, 1)
    peaks = {case: worker.ask(0) for case, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    state = round(4 * 4 * sum(weight.numel() for weight in RRDBNet(**PUBLISHED).parameters()) / 2**20)
    for rival in rivals:
        for case in options.ways:
            ratios = [ours / theirs for ours, theirs in zip(times[case], times[rival], strict=True)]
            figures = {
                "memory_ratio": round(peaks[case] / peaks[rival], 3),
                "time_ratio": quartiles(ratios),
                "ours_MiB": round(peaks[case]),
                "state_MiB": state,
                "ours_ms": round(statistics.median(times[case])),
                "side": options.side,
                "rounds": options.rounds,
            }
            print(json.dumps({"case": f"rrdb memory: {case} / {rival}", **figures, **describe_machine()}), flush=True)


if __name__ == "__main__":
    main()
