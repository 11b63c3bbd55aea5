"""What the trainer's diffusion step costs over a hand-written DDPM loop with the same U-Net.

    python benchmarks/diffusion_overhead.py [--channels 64] [--size 32] [--batch 8] [--steps 2] [--rounds 15] [--threads 1]

Both train a `guided_unet` (three levels, two blocks each, attention at the coarsest) to predict the noise of a cosine
schedule with Adam, in float32. The loop does what it must and no more: timesteps and noise for the batch, the noisy
pictures, the network, the mean squared error, the backward pass, the step. The trainer also reads its data set, draws
stratified times and noise by sample, averages and logs losses by noise level, and watches gradients for what is not
finite. Both run in turn in one process, so that other load on the machine hits both alike. Prints one JSON line: the
median over rounds of the paired ratio, of wall-clock and of processor time, and of the difference in microseconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from step_overhead import InMemory, compare, trainer_of
from torch.nn import functional as F

from dlas.archs import create_network
from dlas.diffusion.schedules import alpha_bars

OPTIONS = """\
name: bench
scale: 1
precision: fp32
datasets:
  train: {{mode: bench_memory, batch_size: {batch}, size: {size}}}
networks:
  generator: {network}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 1e-4}}
    injectors:
      loss:
        {{type: diffusion, in: hq, out: error, generator: generator, process: {{type: vp, schedule: cosine}}, prediction: eps}}
    losses:
      error: {{type: direct, weight: 1, key: error}}
train: {{niter: 1000000000, ema: {{enabled: false}}}}
logger: {{print_freq: 1000000000, save_checkpoint_freq: 1000000000, tensorboard: false}}
"""


def bare_loop(options: dict[str, Any], size: int, batch: int) -> Callable[[int], None]:
    """A hand-written loop; returns what runs a number of its steps."""
    network = create_network(options)
    batches = InMemory("train", size=size, scale=1).hq.split(batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    bars = alpha_bars("cosine", 1000).float()

    def run(steps: int) -> None:
        for number in range(steps):
            x0 = batches[number % len(batches)]
            times = torch.randint(1000, (len(x0),))
            bar = bars[times].reshape(-1, 1, 1, 1)
            noise = torch.randn_like(x0)
            optimizer.zero_grad()
            predicted = network(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, times.float())
            F.mse_loss(predicted, noise).backward()
            optimizer.step()

    return run


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"channels": 64, "size": 32, "batch": 8, "steps": 2, "rounds": 15, "threads": 1}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = vars(parser.parse_args())
    torch.set_num_threads(asked["threads"])
    logging.getLogger("dlas").setLevel(logging.ERROR)
    size, batch = asked["size"], asked["batch"]
    options = {"which_model": "guided_unet", "image_size": size, "in_channels": 3, "out_channels": 3}
    options |= {"model_channels": asked["channels"], "channel_mult": [1, 2, 2], "num_res_blocks": 2}
    options |= {"attention_resolutions": [4]}
    with tempfile.TemporaryDirectory() as folder:
        ours = trainer_of(folder, OPTIONS.format(network=json.dumps(options), size=size, batch=batch))
        figures = compare(ours, bare_loop(options, size, batch), asked["steps"], asked["rounds"])
    machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(json.dumps({**figures, **asked, **machine}))


if __name__ == "__main__":
    main()
