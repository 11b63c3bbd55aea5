"""A training step of guided-diffusion's 64-pixel U-Net at reduced width: the trainer against the repository's own loop.

    python benchmarks/unet_step.py [--peers FOLDER] [--rounds 9] [--width 64] [--blocks 1] [--batch 4]
        [--setting fp32 channels_last bf16]

The rivals are the repository's own network and `TrainLoop` where a clone of it is in the folder (see peers/README.md), and an
imitation for those who have none: our network with attention as two products and a softmax in float32 between them, and with
separate factors behind each normalisation, trained by a loop over weights for norms, optimiser and average. All have learned
variances, a linear schedule of 1000 steps, AdamW, an average of the weights. Ours is the trainer, loader, logs and all; `bf16`
has channels last, too. All run in turn, in processes of their own. Prints a JSON line for each rival and setting: quartiles of
the rounds' paired ratios of processor time, rival / ours; and how far the rival's prediction is from ours with its weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from paired import Worker, describe_machine, in_turn, quartiles
from peers import guided_diffusion
from step_overhead import InMemory, trainer_of
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.attention import PixelAttention
from dlas.layers.unet import ResBlock, double

SETTINGS = {"fp32": ("fp32", "contiguous"), "channels_last": ("fp32", "channels_last"), "bf16": ("bf16", "channels_last")}
LEARNING_RATE = 1e-4
DECAY = 0.9999
STEPS = 1000
OPTIONS = """\
name: bench
scale: 1
precision: {precision}
memory_format: {layout}
datasets:
  train: {{mode: bench_memory, batch_size: {batch}, size: 64}}
networks:
  generator: {network}
steps:
  generator:
    training: generator
    optimizer: adamw
    optimizer_params: {{lr: 1e-4, weight_decay: 0}}
    injectors:
      diffusion:
        type: diffusion
        in: hq
        out: error
        generator: generator
        process: {{type: vp, schedule: linear, steps: 1000}}
        prediction: eps
        variance: learned_range
        loss: mse
    losses:
      error: {{type: direct, weight: 1, key: error}}
train: {{niter: 1000000000, ema: {{rate: 0.9999}}}}
logger: {{print_freq: 1000000000, save_checkpoint_freq: 1000000000, tensorboard: false}}
"""


def options_of(width: int, blocks: int) -> dict[str, Any]:
    """The published network for 64 pixels without classes, less wide and less deep."""
    options = {"which_model": "guided_unet", "image_size": 64, "model_channels": width, "out_channels": 6}
    options |= {"num_res_blocks": blocks, "attention_resolutions": [2, 4, 8], "num_head_channels": 64}
    return options | dict.fromkeys(("use_scale_shift_norm", "resblock_updown", "use_new_attention_order"), True)


def their_options(width: int, blocks: int) -> dict[str, Any]:
    """The same in the words of the repository's script."""
    options = {"image_size": 64, "num_channels": width, "num_res_blocks": blocks, "attention_resolutions": "32,16,8"}
    options |= {"num_head_channels": 64, "diffusion_steps": STEPS, "noise_schedule": "linear", "learn_sigma": True}
    return options | dict.fromkeys(("use_scale_shift_norm", "resblock_updown", "use_new_attention_order"), True)


def plain_attention(self: PixelAttention, x: Tensor) -> Tensor:
    """The published way: queries and keys are scaled, the table of weights is written out and normalised in float32."""
    batch, channels, *size = x.shape
    flat = x.reshape(batch, channels, -1)
    q, k, v = self.qkv(self.norm(flat)).chunk(3, dim=1)
    width, pixels = channels // self.heads, flat.shape[-1]
    scale = 1 / math.sqrt(math.sqrt(width))
    shape = (batch * self.heads, width, pixels)
    table = torch.einsum("bct,bcs->bts", (q * scale).view(shape), (k * scale).view(shape))
    table = torch.softmax(table.float(), dim=-1).type(table.dtype)
    seen = torch.einsum("bts,bcs->bct", table, v.reshape(shape)).reshape(batch, -1, pixels)
    return (flat + self.proj_out(seen)).reshape(batch, channels, *size)


def plain_block(self: ResBlock, x: Tensor, embedding: Tensor) -> Tensor:
    """The published way: every factor and sum is an operation of its own."""
    resize = {"": lambda h: h, "up": double, "down": nn.AvgPool2d(2)}[self.resample]
    h = self.in_layers[2](resize(self.in_layers[:2](x)))
    scale, shift = self.emb_layers(embedding).type(h.dtype)[..., None, None].chunk(2, dim=1)
    h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
    return self.skip_connection(resize(x)) + h


def imitation(width: int, blocks: int) -> nn.Module:
    """Our network, computing in the published way. No weight is 0, so that all of it is at work."""
    network = create_network(options_of(width, blocks))
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    for module in network.modules():
        if isinstance(module, PixelAttention):
            module.forward = plain_attention.__get__(module)  # type: ignore[method-assign]
        elif isinstance(module, ResBlock):
            module.forward = plain_block.__get__(module)  # type: ignore[method-assign]
    return network


def imitated_loop(network: nn.Module, batches: list[Tensor]) -> Callable[[int], None]:
    """guided-diffusion's loop, less its bound for the variance; returns what runs a number of its steps."""
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    bars = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64).neg().add(1).cumprod(0).float()

    def run(steps: int) -> None:
        for number in range(steps):
            x0 = batches[number % len(batches)]
            times, noise = torch.randint(STEPS, (len(x0),)), torch.randn_like(x0)
            bar = bars[times].reshape(-1, 1, 1, 1)
            for weight in weights:  # it zeroes gradients in place
                if weight.grad is not None:
                    weight.grad.detach_().zero_()
            predicted = network(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, times)[:, :3]
            (predicted - noise).square().mean((1, 2, 3)).mean().backward()
            with torch.no_grad():
                sum(weight.norm().item() ** 2 for weight in weights)
                sum(weight.grad.norm().item() ** 2 for weight in weights if weight.grad is not None)
            optimizer.step()
            for mean, weight in zip(average, weights, strict=True):
                mean.mul_(DECAY).add_(weight.detach(), alpha=1 - DECAY)

    return run


def distance(network: nn.Module, width: int, blocks: int) -> float:
    """How far a rival's prediction is from ours with the same weights: the largest difference, over the largest value."""
    ours = create_network(options_of(width, blocks))
    ours.load_state_dict(network.state_dict())
    x, times = torch.randn(1, 3, 64, 64), torch.tensor([500])
    with torch.no_grad():
        predicted = network(x, times)
        return float((ours(x, times) - predicted).abs().max() / predicted.abs().max())


def work(case: str, asked: argparse.Namespace) -> None:
    """What a worker does: for each number, that many steps, answered with milliseconds a step; a rival's `distance` for 0."""
    logging.getLogger("dlas").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    size = asked.width, asked.blocks
    batches = [each.mul(2).sub(1) for each in InMemory("train", size=64, scale=1).hq.split(asked.batch)]
    with tempfile.TemporaryDirectory() as folder:
        if case in SETTINGS:
            (precision, layout), network = SETTINGS[case], json.dumps(options_of(*size))
            run = trainer_of(folder, OPTIONS.format(precision=precision, layout=layout, network=network, batch=asked.batch))
        elif case == "imitation":
            rival = imitation(*size)
            run = imitated_loop(rival, batches)
        else:
            rival, run = guided_diffusion.training(asked.peers, their_options(*size), batches)
        for line in sys.stdin:
            if steps := int(line):
                start = time.process_time()
                run(steps)
                print(1e3 * (time.process_time() - start) / steps, flush=True)
            else:
                print(distance(rival, *size), flush=True)


def main() -> None:
    """Runs all in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with a clone of guided-diffusion")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    for name, default in {"rounds": 9, "width": 64, "blocks": 1, "batch": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked)
        return
    rivals = ["imitation", *(["guided-diffusion"] if guided_diffusion.available(asked.peers) else [])]
    command = [sys.executable, __file__, *(["--peers", str(asked.peers.resolve())] if asked.peers else [])]
    for name in ("width", "blocks", "batch"):
        command += [f"--{name}", str(getattr(asked, name))]
    workers = {case: Worker([*command, "--work", case]) for case in (*rivals, *asked.setting)}
    for worker in workers.values():
        worker.ask(2)  # warm-up
    distances = {rival: workers[rival].ask(0) for rival in rivals}
    times = in_turn(workers, asked.rounds, 1)
    for worker in workers.values():
        worker.close()
    medians = {case: round(statistics.median(found), 1) for case, found in times.items()}
    size = {"width": asked.width, "blocks": asked.blocks, "batch": asked.batch, "rounds": asked.rounds}
    for rival in rivals:
        for case in asked.setting:
            ratios = [theirs / ours for theirs, ours in zip(times[rival], times[case], strict=True)]
            figures = {"ratio": quartiles(ratios), "distance": distances[rival]}
            figures |= {"rival_ms": medians[rival], "ours_ms": medians[case], **size, **describe_machine()}
            print(json.dumps({"case": f"guided U-Net 64 px step: {rival} / {case}", **figures}), flush=True)


if __name__ == "__main__":
    main()
