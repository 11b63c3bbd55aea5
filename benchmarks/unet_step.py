"""A training step of guided-diffusion's 64-pixel U-Net at reduced width: ours against the way its repository does it.

    python benchmarks/unet_step.py [--rounds 15] [--width 64] [--blocks 1] [--batch 4] [--precision fp32]

The rival is a network with the same weights whose attention is two products with a softmax in float32 between them, whose
normalisation is followed by separate factors, in contiguous memory, trained by a loop over parameters for the norm of the
gradients and for the average, as guided-diffusion's training loop does it. Ours and the rival take a step in turn, from the
same weights, so that other load on the machine hits both alike. The first predictions are compared. Prints one JSON line: the
median over rounds of the paired ratio (rival's time over ours), for the network alone (forward, backward) and the whole step.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.attention import PixelAttention
from dlas.layers.unet import ResBlock, double

LEARNING_RATE = 1e-4
DECAY = 0.9999


def build(width: int, blocks: int) -> nn.Module:
    """The published network for 64 pixels, less wide and less deep. No weight is 0, so that all of it is at work."""
    torch.manual_seed(0)
    options = {"image_size": 64, "model_channels": width, "out_channels": 6, "num_res_blocks": blocks, "num_classes": 1000}
    options |= {"attention_resolutions": [2, 4, 8], "channel_mult": [1, 2, 3, 4], "num_head_channels": 64}
    options |= {"use_scale_shift_norm": True, "resblock_updown": True, "use_new_attention_order": True}
    network = create_network({"which_model": "guided_unet", **options})
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return network


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


def as_published(network: nn.Module) -> nn.Module:
    """A copy of the network that computes in the published way."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, PixelAttention):
            module.forward = plain_attention.__get__(module)  # type: ignore[method-assign]
        elif isinstance(module, ResBlock):
            module.forward = plain_block.__get__(module)  # type: ignore[method-assign]
    return network


def published_step(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Iterator[float]:
    """Yields the seconds of forward and backward, after each step of guided-diffusion's loop."""
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, foreach=False)
    while True:
        for weight in weights:  # it zeroes gradients in place
            if weight.grad is not None:
                weight.grad.detach_().zero_()
        start = time.perf_counter()
        loss(network).backward()
        spent = time.perf_counter() - start
        sum((weight.grad**2).sum().item() for weight in weights if weight.grad is not None)
        optimizer.step()
        for mean, weight in zip(average, weights, strict=True):
            mean.mul_(DECAY).add_(weight.detach(), alpha=1 - DECAY)
        yield spent


def our_step(network: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Iterator[float]:
    """The same with the trainer's operations: fused optimiser, norms and averages of all weights at once."""
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    while True:
        optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss(network).backward()
        spent = time.perf_counter() - start
        torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - DECAY)
        yield spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of ours; the rival is in float32")
    arguments = parser.parse_args()

    network = build(arguments.width, arguments.blocks)
    rival = as_published(network)
    ours = copy.deepcopy(network).to(memory_format=torch.channels_last)
    x, noise = torch.randn(2, arguments.batch, 3, 64, 64)
    times, classes = torch.randint(1000, (arguments.batch,)), torch.randint(1000, (arguments.batch,))
    last = x.contiguous(memory_format=torch.channels_last)

    def rivals_loss(model: nn.Module) -> Tensor:
        return (model(x, times, classes)[:, :3] - noise).square().mean((1, 2, 3)).mean()

    def our_loss(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            return (model(last, times, classes)[:, :3] - noise).square().mean()

    with torch.no_grad():
        difference = (ours(last, times, classes) - rival(x, times, classes)).abs().max().item()
    steps = {"rival": published_step(rival, rivals_loss), "ours": our_step(ours, our_loss)}
    whole: dict[str, list[float]] = {name: [] for name in steps}
    inner: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.rounds + 2):
        for name in list(steps) if number % 2 else reversed(steps):
            start = time.perf_counter()
            spent = next(steps[name])
            if number >= 2:  # the first ones allocate
                whole[name].append(time.perf_counter() - start)
                inner[name].append(spent)

    def ratio(seconds: dict[str, list[float]]) -> float:
        return round(statistics.median(r / o for r, o in zip(seconds["rival"], seconds["ours"], strict=True)), 3)

    report = {
        "case": f"guided U-Net 64 px, width {arguments.width}, {arguments.blocks} blocks, batch {arguments.batch}",
        "precision": arguments.precision,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "network_ratio": ratio(inner),
        "step_ratio": ratio(whole),
        "ours_ms": round(1000 * statistics.median(whole["ours"]), 1),
        "rival_ms": round(1000 * statistics.median(whole["rival"]), 1),
        "largest_difference": difference,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
