"""What the trainer's step costs over a hand-written loop, and what bf16 with channels_last gains.

    python benchmarks/step_overhead.py [--rounds 15]

Trainer and bare loop run in turn in one process, block by block, on the same network, data in memory and optimiser, so that
other load on the machine hits both alike. Prints one JSON line per case: the median over rounds of the paired ratio, and of the
difference in microseconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.config import load
from dlas.data.base import Dataset, Request, Sample
from dlas.engine.interrupt import StopRequest
from dlas.engine.throughput import Throughput
from dlas.engine.trainer import Trainer
from dlas.observe.console import progress_bar
from dlas.observe.recorder import Recorder
from dlas.registry import ARCHS, DATASETS
from dlas.types import PositiveInt


@DATASETS.register("bench_memory")
class InMemory(Dataset):
    """Random pairs that are in memory already."""

    def __init__(self, phase: str, /, *, size: PositiveInt = 32, scale: PositiveInt = 4, length: PositiveInt = 64) -> None:
        generator = torch.Generator().manual_seed(0 if phase == "train" else 1)
        self.lq = torch.rand(length, 3, size, size, generator=generator)
        self.hq = torch.rand(length, 3, size * scale, size * scale, generator=generator)

    def __len__(self) -> int:
        return len(self.lq)

    def __getitem__(self, request: Request) -> Sample:
        return {"lq": self.lq[request.index], "hq": self.hq[request.index]}


@ARCHS.register("bench_conv")
class OneConvolution(nn.Module):
    """The smallest network there is to train."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


OPTIONS = """\
name: bench
scale: {scale}
precision: {precision}
memory_format: {layout}
datasets:
  train: {{mode: bench_memory, batch_size: 4, size: {size}}}
networks:
  generator: {network}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 1e-4}}
    injectors:
      gen: {{type: generator, generator: generator, in: lq, out: gen}}
    losses:
      pix: {{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}
train: {{niter: 1000000000, ema: {{enabled: false}}}}
logger: {{print_freq: 1000000000, save_checkpoint_freq: 1000000000, tensorboard: false}}
"""
RRDB = "{which_model_G: RRDBNet, nf: 32, nb: 4, gc: 32}"


def bare_loop(
    network: nn.Module, size: int, scale: int, precision: str, layout: torch.memory_format, batch: int = 4
) -> Callable[[int], None]:
    """A hand-written training loop; returns what runs a number of its steps."""
    data = InMemory("train", size=size, scale=scale)
    network = network.to(memory_format=layout)
    batches = [
        (lq.contiguous(memory_format=layout), hq.contiguous(memory_format=layout))
        for lq, hq in zip(data.lq.split(batch), data.hq.split(batch), strict=True)
    ]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def run(steps: int) -> None:
        for number in range(steps):
            lq, hq = batches[number % len(batches)]
            optimizer.zero_grad()
            if precision == "bf16":
                with torch.autocast("cpu", torch.bfloat16):
                    output = network(lq)
            else:
                output = network(lq)
            nn.functional.l1_loss(output.float(), hq).backward()
            optimizer.step()

    return run


def trainer_loop(folder: str, network: str, size: int, scale: int, precision: str, layout: str) -> Callable[[int], None]:
    """A training of super-resolution by the trainer; see `trainer_of`."""
    return trainer_of(folder, OPTIONS.format(scale=scale, precision=precision, layout=layout, size=size, network=network))


def trainer_of(folder: str, options: str) -> Callable[[int], None]:
    """The trainer's own loop, loader, logs and all, for a file of options; returns what runs a number of its steps."""
    path = Path(folder) / "options.yml"
    path.write_text(options)
    trainer = Trainer(load(path, [f"path.experiments={folder}"]))
    trainer.folder.checkpoints.mkdir(parents=True, exist_ok=True)
    (trainer.folder.path / "config.resolved.yml").write_text("")
    trainer.recorder = Recorder(trainer.folder.metrics, None)
    loader = trainer._loader()
    trainer.bar = progress_bar(1, 0)
    trainer.throughput = Throughput(trainer.config, trainer.progress, trainer.device, trainer.precision, trainer.work)

    def run(steps: int) -> None:
        trainer.advance(loader, trainer.progress.step + steps, StopRequest())

    return run


def compare(first: Callable[[int], None], second: Callable[[int], None], steps: int, rounds: int) -> dict[str, Any]:
    """Times blocks of both in turn, the order changing every round.

    The ratio of processor seconds holds still when something else loads the machine; that of wall seconds does not.
    """
    first(steps), second(steps)
    wall, cpu, differences = [], [], []
    for number in range(rounds):
        seconds = {}
        for each in (first, second) if number % 2 else (second, first):
            start, start_cpu = time.perf_counter(), time.process_time()
            each(steps)
            seconds[each] = (time.perf_counter() - start) / steps, (time.process_time() - start_cpu) / steps
        wall.append(seconds[first][0] / seconds[second][0])
        cpu.append(seconds[first][1] / seconds[second][1])
        differences.append(1e6 * (seconds[first][0] - seconds[second][0]))
    return {
        "ratio": round(statistics.median(wall), 4),
        "ratio_quartiles": [round(q, 4) for q in statistics.quantiles(wall, n=4)[::2]],
        "cpu_ratio": round(statistics.median(cpu), 4),
        "cpu_ratio_quartiles": [round(q, 4) for q in statistics.quantiles(cpu, n=4)[::2]],
        "difference_us": round(statistics.median(differences), 1),
        "second_ms": round(1e3 * seconds[second][0], 3),
    }


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    logging.getLogger("dlas").setLevel(logging.ERROR)
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    contiguous, channels_last = torch.contiguous_format, torch.channels_last

    def show(case: str, figures: dict[str, Any]) -> None:
        print(json.dumps({"case": case, **figures, "rounds": rounds, **machine}), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # so small a network is slower, and its time less steady, on more
        tiny = trainer_loop(folder, "{which_model_G: bench_conv}", 8, 1, "fp32", "contiguous")
        show(
            "trainer / bare loop, one convolution",
            compare(tiny, bare_loop(OneConvolution(), 8, 1, "fp32", contiguous), 400, rounds),
        )
        torch.set_num_threads(threads)
        options = {"which_model_G": "RRDBNet", "nf": 32, "nb": 4, "gc": 32, "scale": 4}
        for precision, name, layout in (("fp32", "contiguous", contiguous), ("bf16", "channels_last", channels_last)):
            ours = trainer_loop(folder, RRDB, 32, 4, precision, name)
            bare = bare_loop(create_network(options), 32, 4, precision, layout)
            show(f"trainer / bare loop, RRDB {precision} {name}", compare(ours, bare, 4, rounds))
        slow = trainer_loop(folder, RRDB, 32, 4, "fp32", "contiguous")
        fast = trainer_loop(folder, RRDB, 32, 4, "bf16", "channels_last")
        show("trainer, RRDB: bf16 channels_last / fp32 contiguous", compare(fast, slow, 4, rounds))


if __name__ == "__main__":
    main()
