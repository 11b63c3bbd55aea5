"""A training step of RRDBNet (32 features, 4 blocks, batch of 4, 32 -> 128 pixels, L1, Adam) against the same in other hands.

    python benchmarks/rrdb_step.py [--peers FOLDER] [--rounds 15] [--setting fp32 channels_last bf16]

The rivals are a straightforward RRDBNet (each convolution of a dense block sees a fresh concatenation) and the networks of
BasicSR, traiNNer-redux and neosr, those of them that are in the folder (see peers/README.md), each in a hand-written loop with
torch's default Adam, which is what all of them use: what their own loops add is not held against them. Ours is the trainer,
loader, logs and all: `fp32` as it is by default, `channels_last` the same numbers in that layout, `bf16` what `dlas tune` picks
where the processor has bfloat16: both. All run in turn, in processes of their own, for the trainer sets for its process how
memory is kept. Prints a JSON line for each rival and setting: quartiles of the rounds' paired ratios of processor time, rival /
ours; whether the rival is the fastest of the programs; and how far its picture is from ours with the same weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from paired import Worker, describe_machine, in_turn, quartiles
from peers.networks import FOLDERS, available, rrdbnet
from plain_rrdb import PlainRRDBNet
from step_overhead import RRDB, InMemory, trainer_loop
from torch import nn

from dlas.archs.rrdb import RRDBNet

SETTINGS = {"fp32": ("fp32", "contiguous"), "channels_last": ("fp32", "channels_last"), "bf16": ("bf16", "channels_last")}
SIZE = {"nf": 32, "nb": 4}


def rival_network(rival: str, peers: Path | None, nf: int, nb: int) -> nn.Module:
    """RRDBNet of a program, or the straightforward one."""
    return PlainRRDBNet(nf, nb) if rival == "plain" else rrdbnet(rival, peers, nf, nb)


def rival_loop(network: nn.Module) -> Callable[[int], None]:
    """A loop as tutorials write it; returns what runs a number of its steps."""
    data = InMemory("train")
    batches = list(zip(data.lq.split(4), data.hq.split(4), strict=True))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def run(steps: int) -> None:
        for number in range(steps):
            lq, hq = batches[number % len(batches)]
            optimizer.zero_grad()
            nn.functional.l1_loss(network(lq), hq).backward()
            optimizer.step()

    return run


def distance(network: nn.Module) -> float:
    """How far a rival's picture is from ours with the same weights: the largest difference, over the largest value."""
    weights = network.state_dict()
    ours = RRDBNet(**SIZE)
    if isinstance(network, PlainRRDBNet):  # in the same order
        weights = dict(zip(ours.state_dict(), weights.values(), strict=True))
    ours.load_state_dict(RRDBNet.rename_state_dict(weights))
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        picture = network(x)
        return float((ours(x) - picture).abs().max() / picture.abs().max())


def work(case: str, peers: Path | None) -> None:
    """What a worker does: for each number, that many steps, answered with milliseconds a step; a rival's `distance` for 0."""
    logging.getLogger("dlas").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if case in SETTINGS:
            run = trainer_loop(folder, RRDB, 32, 4, *SETTINGS[case])
        else:
            network = rival_network(case, peers, **SIZE)
            run = rival_loop(network)
        for line in sys.stdin:
            if steps := int(line):
                start = time.process_time()
                run(steps)
                print(1e3 * (time.process_time() - start) / steps, flush=True)
            else:
                print(distance(network), flush=True)


def main() -> None:
    """Runs all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with clones of the programs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.peers)
        return
    rivals = ["plain", *available(options.peers)]
    command = [sys.executable, __file__, *(["--peers", str(options.peers.resolve())] if options.peers else []), "--work"]
    workers = {case: Worker([*command, case]) for case in (*rivals, *options.setting)}
    for worker in workers.values():
        worker.ask(3)  # warm-up
    distances = {rival: workers[rival].ask(0) for rival in rivals}
    times = in_turn(workers, options.rounds, 2)
    for worker in workers.values():
        worker.close()
    medians = {case: round(statistics.median(found), 1) for case, found in times.items()}
    fastest = min((rival for rival in rivals if rival in FOLDERS), key=medians.__getitem__, default=None)
    for rival in rivals:
        for case in options.setting:
            ratios = [theirs / ours for theirs, ours in zip(times[rival], times[case], strict=True)]
            figures = {"ratio": quartiles(ratios), "fastest_program": rival == fastest, "distance": distances[rival]}
            figures |= {"rival_ms": medians[rival], "ours_ms": medians[case], "rounds": options.rounds}
            print(json.dumps({"case": f"rrdb step: {rival} / {case}", **figures, **describe_machine()}), flush=True)


if __name__ == "__main__":
    main()
