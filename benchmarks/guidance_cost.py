"""What classifier-free guidance costs when both halves go through the network in one call, against two calls.

    python benchmarks/guidance_cost.py [--batch 1] [--channels 64] [--size 16] [--rounds 60] [--threads 1] [--device cpu]

A small U-Net of residual blocks (three resolutions, time and class embeddings), in evaluation mode, and one DDIM step
at a time: the same step with one call of twice the batch, with two separate calls, and without guidance, in turn, the
order changing each round. On the CPU it is processor time that counts, on other devices wall-clock time with the device
waited for. Prints one JSON line: medians in milliseconds, and `ratio`, the median over rounds of batched to separate.
One call does the arithmetic of two, so the ratio is near 1 where arithmetic is the limit, and falls towards 0.5 where
starting operations and reading weights is.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlas.diffusion import Denoised, NetworkDenoiser, create_process
from dlas.diffusion.guidance import ClassifierFree, Guidance
from dlas.diffusion.samplers import create_sampler


class Block(nn.Module):
    """Residual block with an embedding added."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.embed = nn.Linear(embedding, outputs)
        self.second = nn.Sequential(nn.GroupNorm(8, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.skip(x) + self.second(self.first(x) + self.embed(embedding)[:, :, None, None])


class UNet(nn.Module):
    """Three resolutions with two blocks each, down and up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, widths = channels, (channels, 2 * channels, 2 * channels)
        self.label = nn.Embedding(11, channels)
        self.time = nn.Sequential(nn.Linear(channels, channels), nn.SiLU())
        self.enter, inputs = nn.Conv2d(3, channels, 3, padding=1), channels
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            self.down.append(nn.ModuleList([Block(inputs, width, channels), Block(width, width, channels)]))
            inputs = width
        for width in reversed(widths):
            self.up.append(nn.ModuleList([Block(inputs + width, width, channels), Block(width, width, channels)]))
            inputs = width
        self.leave = nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x: Tensor, times: Tensor, label: Tensor) -> Tensor:
        rates = torch.exp(-torch.arange(self.channels // 2, device=x.device) / (self.channels // 2) * 9.2)
        angles = times[:, None] * rates
        embedding = self.time(torch.cat((angles.cos(), angles.sin()), 1)) + self.label(label)
        x, kept = self.enter(x), []
        for number, blocks in enumerate(self.down):
            x = F.avg_pool2d(x, 2) if number else x
            for block in blocks:
                x = block(x, embedding)
            kept.append(x)
        for number, blocks in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2.0) if number else x
            x = torch.cat((x, kept.pop()), 1)
            for block in blocks:
                x = block(x, embedding)
        return self.leave(x)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    network = UNet(arguments.channels).to(device).eval()
    process = create_process({"type": "vp", "schedule": "cosine"})
    grid, sampler = process.grid([500.0], end=450.0), create_sampler({"type": "ddim"})
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    with_label, without = ({"label": torch.full((arguments.batch,), n, device=device)} for n in (3, 10))
    guidance = Guidance(3.0)
    batched = ClassifierFree(network, process, "v", with_label, unconditional=without, guidance=guidance)
    good, bad = (NetworkDenoiser(network, process, "v", conditions) for conditions in (with_label, without))

    def separate(x: Tensor, time: float) -> Denoised:
        output = guidance.combine(good.output(x, time)[0], bad.output(x, time)[0], guidance.scale)
        return good.denoised(output, None, x, time)

    def step(denoise: Callable[[Tensor, float], Denoised]) -> Tensor:
        return sampler.run(denoise, x, grid, lambda k: x)

    def seconds(denoise: Callable[[Tensor, float], Denoised]) -> float:
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        start = clock()
        step(denoise)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return clock() - start

    cases = {"batched": batched, "separate": separate, "unguided": good}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    with torch.inference_mode():
        assert torch.allclose(step(batched), step(separate), rtol=1e-3, atol=1e-4)
        for number in range(arguments.rounds + 5):
            for name in list(cases) if number % 2 else reversed(cases):
                spent = seconds(cases[name])
                if number >= 5:
                    taken[name].append(1e3 * spent)
    ratios = [a / b for a, b in zip(taken["batched"], taken["separate"], strict=True)]
    figures = {f"{name}_ms": round(statistics.median(values), 2) for name, values in taken.items()}
    spread = [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]]
    machine = platform.processor() or platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device)
    settings = {key: getattr(arguments, key) for key in ("batch", "channels", "size", "threads", "rounds")}
    row = {**figures, "ratio": round(statistics.median(ratios), 3), "quartiles": spread}
    print(json.dumps({**row, **settings, "device": machine, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
