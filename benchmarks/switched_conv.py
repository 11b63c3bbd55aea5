"""Hard switched convolution on the CPU: places grouped by kernel against the sum over all kernels, and one plain convolution.

    python benchmarks/switched_conv.py [--breadths 8] [--rounds 7] [--batch 4] [--channels 64] [--size 64] [--kernel 3]
    python benchmarks/switched_conv.py --breadths 1 2 4 8 16 32 64 --picture docs/images/switched_conv.svg

Forward and backward (input, weight, bias, shares), kernels chosen at random for each place. The three take turns, so that other
load on the machine hits all alike; results and gradients of the first two are compared first. Memory is what is held at most
beyond what is there before, in one forward and backward: the peak of a process of its own, by Linux.
Prints one JSON line for each breadth: medians in ms of processor time, the median of the paired ratios, and MiB.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import multiprocessing.connection
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.layers.switched.gate import route_top1
from dlas.layers.switched.grouped import grouped_conv2d
from dlas.layers.switched.product import summed_conv2d

Step = Callable[[], tuple[Tensor, ...]]
WAYS = ("grouped", "sum", "plain")


def steps(breadth: int, options: argparse.Namespace, seed: int = 0) -> dict[str, Step]:
    """Forward and backward by each way; the output and the gradients."""
    torch.manual_seed(seed)
    channels, kernel, size = options.channels, options.kernel, options.size
    x = torch.randn(options.batch, channels, size, size, requires_grad=True)
    weight = (torch.randn(channels, channels, breadth, kernel, kernel) / (channels**0.5 * kernel)).requires_grad_()
    bias = torch.randn(channels, requires_grad=True)
    logits = torch.randn(options.batch, breadth, size, size, requires_grad=True)
    single = weight.detach()[:, :, 0].clone().requires_grad_()
    direction = torch.randn(options.batch, channels, size, size)

    def switched(product: Callable[..., Tensor]) -> Step:
        def step() -> tuple[Tensor, ...]:
            y = product(x, weight, route_top1(torch.softmax(logits, dim=1)), bias, 1, kernel // 2)
            return y.detach(), *torch.autograd.grad(y, (x, weight, bias, logits), direction)

        return step

    def plain() -> tuple[Tensor, ...]:
        y = F.conv2d(x, single, bias, padding=kernel // 2)
        return y.detach(), *torch.autograd.grad(y, (x, single, bias), direction)

    return {"grouped": switched(grouped_conv2d), "sum": switched(summed_conv2d), "plain": plain}


def timed(step: Step) -> float:
    start = time.process_time()
    step()
    return (time.process_time() - start) * 1000


def memory(name: str, breadth: int, options: argparse.Namespace) -> float:
    """MiB at most in one step, in a process of its own."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_peak, args=(sender, name, breadth, options))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def _peak(sender: multiprocessing.connection.Connection, name: str, breadth: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    small = argparse.Namespace(**{**vars(options), "batch": 1, "size": 2 * options.kernel})
    steps(breadth, small)[name]()  # code and buffers of the libraries are there before
    step = steps(breadth, options)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_kib()
    step()
    sender.send((peak_kib() - before) / 1024)


def peak_kib() -> int:
    """Most memory that this process has held since the peak was cleared (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def picture(rows: list[dict[str, float]]) -> str:
    """Processor time against breadth, both axes logarithmic, as SVG."""
    width, height, left, right, top, bottom = 560, 300, 56, 100, 16, 40
    largest = max(row[f"{name}_ms"] for row in rows for name in WAYS)
    smallest = min(row[f"{name}_ms"] for row in rows for name in WAYS)
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest))
    widest = max(1.0, math.log2(max(row["breadth"] for row in rows)))

    def place(breadth: float, milliseconds: float) -> tuple[float, float]:
        across = left + math.log2(breadth) / widest * (width - left - right)
        return across, height - bottom - (math.log10(milliseconds) - low) / (high - low) * (height - top - bottom)

    parts = []
    for power in range(low, high + 1):
        y = place(1, 10**power)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
    for row in rows:
        x = place(row["breadth"], 10**low)[0]
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{row["breadth"]}</text>')
    for number, name in enumerate(WAYS):
        points = [place(row["breadth"], row[f"{name}_ms"]) for row in sorted(rows, key=lambda row: row["breadth"])]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path class="line n{number}" d="M{path}"/>')
        parts.append(f'<text x="{points[-1][0] + 8:.1f}" y="{points[-1][1] + 4:.1f}">{name}</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">kernels; ms of processor time</text>'
    )
    style = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Arial, "DejaVu Sans", sans-serif; fill: #1f2328; }
.page { fill: #ffffff; } .grid { stroke: #d8dee4; fill: none; } .line { fill: none; stroke-width: 1.8; }
.n0 { stroke: #0969da; } .n1 { stroke: #bc4c00; } .n2 { stroke: #8250df; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .page { fill: #0d1117; } .grid { stroke: #3d444d; }
.n0 { stroke: #4493f8; } .n1 { stroke: #f0883e; } .n2 { stroke: #ab7df8; }
}
"""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    page = '<rect class="page" width="100%" height="100%"/>'
    title = "<title>Processor time of a switched convolution against its number of kernels</title>"
    return "\n".join([head, title, f"<style>{style}</style>", page, *parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breadths", type=int, nargs="+", default=[8])
    for name, value in {"rounds": 7, "batch": 4, "channels": 64, "size": 64, "kernel": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--picture", type=Path, help="SVG file to write: the times against the breadths")
    options = parser.parse_args()
    rows = []
    torch.set_num_threads(options.threads)
    for breadth in options.breadths:
        ways = steps(breadth, options)
        for ours, expected in zip(ways["grouped"](), ways["sum"](), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
        ways["plain"]()
        # Other choices in each round, as in training: nothing is ready for the numbers of places that come.
        rounds = [
            {name: timed(step) for name, step in steps(breadth, options, seed=number).items()}
            for number in range(options.rounds)
        ]
        line: dict[str, float] = {"breadth": breadth}
        line |= {f"{name}_ms": round(statistics.median(each[name] for each in rounds), 1) for name in ways}
        for rival in ("sum", "plain"):
            line[f"{rival}_over_grouped"] = round(statistics.median(each[rival] / each["grouped"] for each in rounds), 2)
        line |= {f"{name}_MiB": round(memory(name, breadth, options), 1) for name in ways}
        print(json.dumps(line), flush=True)
        rows.append(line)
    if options.picture is not None:
        options.picture.write_text(picture(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
