"""A training step of RRDBNet (32 features, 4 blocks, batch of 4, 32 -> 128 pixels, L1, Adam) against the same in other hands.

    python benchmarks/rrdb_step.py [--rounds 15] [--setting fp32 channels_last bf16]

The rivals are a straightforward RRDBNet (each convolution of a dense block sees a fresh concatenation) in a hand-written loop
with torch's default Adam, and BasicSR's RRDBNet in the same loop where `basicsr` can be imported. Ours is the trainer: `fp32`
as it is by default, `channels_last` the same numbers in that layout, `bf16` what `dlas tune` picks where the processor has
bfloat16: both. All run in turn, in processes of their own, for the trainer sets for its process how memory is kept. Prints a
JSON line for each rival and setting: quartiles of the rounds' paired ratios of processor time, rival / ours.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from paired import Worker, describe_machine, quartiles
from peers.basicsr_rrdb import basicsr_rrdbnet
from plain_rrdb import PlainRRDBNet
from step_overhead import RRDB, InMemory, trainer_loop
from torch import nn

SETTINGS = {"fp32": ("fp32", "contiguous"), "channels_last": ("fp32", "channels_last"), "bf16": ("bf16", "channels_last")}
RIVALS: dict[str, Callable[[], nn.Module]] = {"plain": lambda: PlainRRDBNet(32, 4), "basicsr": lambda: basicsr_rrdbnet(32, 4)}


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


def work(case: str) -> None:
    """What a worker does: for each line it is sent, that many steps; it answers with milliseconds a step."""
    logging.getLogger("dlas").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = rival_loop(RIVALS[case]()) if case in RIVALS else trainer_loop(folder, RRDB, 32, 4, *SETTINGS[case])
        for line in sys.stdin:
            start = time.process_time()
            run(int(line))
            print(1e3 * (time.process_time() - start) / int(line), flush=True)


def main() -> None:
    """Runs all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    rivals = [name for name in RIVALS if name != "basicsr" or importlib.util.find_spec("basicsr")]
    workers = {case: Worker([sys.executable, __file__, "--work", case]) for case in (*rivals, *options.setting)}
    times: dict[str, list[float]] = {case: [] for case in workers}
    for worker in workers.values():
        worker.ask(3)  # warm-up
    for number in range(options.rounds):
        for case in list(workers) if number % 2 else reversed(workers):
            times[case].append(workers[case].ask(2))
    for worker in workers.values():
        worker.close()
    for rival in rivals:
        for case in options.setting:
            ratios = [theirs / ours for theirs, ours in zip(times[rival], times[case], strict=True)]
            ours_ms = round(statistics.median(times[case]), 1)
            figures = {"ratio": quartiles(ratios), "ours_ms": ours_ms, "rounds": options.rounds, **describe_machine()}
            print(json.dumps({"case": f"rrdb step: {rival} / {case}", **figures}), flush=True)


if __name__ == "__main__":
    main()
