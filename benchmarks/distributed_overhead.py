"""What training in several processes costs over hand-written loops.

    python benchmarks/distributed_overhead.py [--rounds 21]

Three cases, blocks of both sides in turn in the same processes, the order changing every round: the trainer alone against a
bare loop, and the trainer with `strategy: ddp` in two processes against a bare loop with torch's DistributedDataParallel, with
the same network, data in memory and optimiser; once looking for unused parameters as little as the bare loop does, and once as
it does by default. Prints one JSON line per case: medians over the rounds of the paired ratios of wall
time, of the first process. With fewer cores than processes the ratio of processor time is the steadier one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from step_overhead import InMemory, compare, trainer_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlas.archs import create_network
from dlas.config import load
from dlas.engine.distributed import Ranks
from dlas.engine.distributed.launch import joined

BATCH = 4  # of all processes
OPTIONS = f"""\
name: bench
scale: 4
datasets:
  train: {{mode: bench_memory, batch_size: {BATCH}, size: 32}}
networks:
  generator: {{which_model_G: RRDBNet, nf: 32, nb: 4, gc: 32}}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 1e-4}}
    injectors:
      gen: {{type: generator, generator: generator, in: lq, out: gen}}
    losses:
      pix: {{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}
distributed: {{find_unused_parameters: FIND_UNUSED}}
train: {{niter: 1000000000, ema: {{enabled: false}}}}
logger: {{print_freq: 1000000000, save_checkpoint_freq: 1000000000, tensorboard: false}}
"""


def bare_loop(ranks: Ranks) -> Callable[[int], None]:
    """A hand-written training loop on this process's part of the batch; returns what runs a number of its steps."""
    data = InMemory("train")
    network: nn.Module = create_network({"which_model_G": "RRDBNet", "nf": 32, "nb": 4, "gc": 32, "scale": 4})
    if ranks.many:
        network = DistributedDataParallel(network, gradient_as_bucket_view=True)
    share = BATCH // ranks.world_size
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    batches = [(lq[mine], hq[mine]) for lq, hq in zip(data.lq.split(BATCH), data.hq.split(BATCH), strict=True)]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def run(steps: int) -> None:
        for number in range(steps):
            lq, hq = batches[number % len(batches)]
            optimizer.zero_grad()
            nn.functional.l1_loss(network(lq), hq).backward()
            optimizer.step()

    return run


def measure(rounds: int, steps: int, find_unused: bool = False) -> None:
    """One case, in this process or in all that were started together; the first one prints."""
    options = OPTIONS.replace("FIND_UNUSED", str(find_unused).lower())
    torch.set_num_threads(1)
    logging.getLogger("dlas").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yml"
        file.write_text(options)
        with joined(load(file)) as ranks:
            bare = bare_loop(ranks)
            figures: dict[str, Any] = compare(trainer_of(folder, options), bare, steps, rounds)
        if ranks.main:
            looking = ", find_unused_parameters" if find_unused else ""
            many = f"trainer{looking} / bare DDP loop, {ranks.world_size} processes"
            case = many if ranks.many else "trainer / bare loop, 1 process"
            print(json.dumps({"case": case, **figures, "rounds": rounds, "torch": torch.__version__}), flush=True)


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--steps", type=int, default=1, help="of a block")
    parser.add_argument("--find-unused", action="store_true", help="of the process that this option is given to")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        measure(arguments.rounds, arguments.steps)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        numbers = ["--rounds", str(arguments.rounds), "--steps", str(arguments.steps)]
        for option in [], ["--find-unused"]:
            subprocess.run([*launch, __file__, *numbers, *option], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    else:
        measure(arguments.rounds, arguments.steps, arguments.find_unused)


if __name__ == "__main__":
    main()
