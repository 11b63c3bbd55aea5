"""Error of samplers against calls of the network, on data whose best denoiser and probability flow are known in closed form.

    python benchmarks/sampler_orders.py [--picture docs/images/sampler_orders.svg]

A mixture of normal distributions in two dimensions, in float64. Every deterministic sampler goes from sigma / alpha =
20 to 0.05 in 8 to 256 equal steps of ln(sigma / alpha), for each process; the error, of x / alpha, is the largest over
a few samples of the distance in a coordinate from where the probability flow leads. Prints one JSON line per process
and sampler: calls, errors, and the slope over the last three doublings, which is minus the order. Draws the lines of
the process `edm`; the others' are alike.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from torch import Tensor

from dlas.diffusion import Denoised, create_process
from dlas.diffusion.samplers import create_sampler
from oracles.mixture import TWO

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = {
    "vp, linear": {"type": "vp", "steps": 20000},
    "vp, cosine": {"type": "vp", "schedule": "cosine", "steps": 20000},
    "edm": {"type": "edm"},
    "flow": {"type": "flow"},
}
SAMPLERS = {
    "DDIM, Euler": {"type": "ddim"},
    "Heun (ratio)": {"type": "heun", "along": "ratio"},
    "Heun (velocity)": {"type": "heun", "along": "velocity"},
    "DPM-Solver++ 2M": {"type": "dpm_solver"},
}
STEPS = (8, 16, 32, 64, 128, 256)
Curve = tuple[list[int], list[float]]


def measure(process_options: dict[str, object], sampler_options: dict[str, object]) -> Curve:
    """Calls of the network and errors, by number of steps."""
    process, sampler = create_process(process_options), create_sampler(sampler_options)
    best = TWO.denoiser(process)
    calls, errors = [], []
    for steps in STEPS:
        ratios = torch.linspace(math.log(20), math.log(0.05), steps + 1, dtype=torch.float64).exp()
        times = process.at_ratio(ratios).tolist()
        grid = process.grid(times[:-1], end=times[-1])
        count = 0

        def denoise(x: Tensor, time: float) -> Denoised:
            nonlocal count
            count += 1
            return best(x, time)

        q = torch.linspace(-1.5, 1.5, 5, dtype=torch.float64)
        x = torch.stack([q, 0.2 - 0.7 * q], 1) * math.hypot(0.6 * grid.alphas[0], grid.sigmas[0])
        exact = TWO.transport(x, (grid.alphas[0], grid.sigmas[0]), (grid.alphas[-1], grid.sigmas[-1]))
        made = sampler.run(denoise, x, grid, torch.zeros)
        calls.append(count)
        errors.append((made - exact).abs().max().item() / grid.alphas[-1])
    return calls, errors


def picture(curves: dict[str, Curve]) -> str:
    """An SVG with both axes logarithmic; colours follow the reader's light or dark setting."""
    width, height, left, top, right, bottom = 640, 400, 70, 20, 20, 50
    low, high = -6, 0

    def across(calls: float) -> float:
        return left + (math.log2(calls) - 3) / 6 * (width - left - right)

    def down(error: float) -> float:
        return top + (high - math.log10(error)) / (high - low) * (height - top - bottom)

    parts = []
    for exponent in range(3, 10):
        x = across(2**exponent)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{height - bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{2**exponent}</text>')
    for exponent in range(low, high + 1):
        y = down(10.0**exponent)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">1e{exponent}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">calls of the network</text>')
    middle = (top + height - bottom) / 2
    parts.append(f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">largest error</text>')
    for number, (name, (calls, errors)) in enumerate(curves.items()):
        points = [(across(c), down(e)) for c, e in zip(calls, errors, strict=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line n{number}" points="{line}"/>')
        parts += [f'<circle class="n{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
        y = height - bottom - 20 * (len(curves) - number)
        parts.append(f'<path class="line n{number}" d="M{left + 12} {y}h24"/>')
        parts.append(f'<text x="{left + 42}" y="{y + 4}">{name}</text>')
    style = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Arial, "DejaVu Sans", sans-serif; fill: #1f2328; }
.page { fill: #ffffff; } .grid { stroke: #d8dee4; fill: none; } .line { fill: none; stroke-width: 1.8; }
circle.n0 { fill: #0969da; } circle.n1 { fill: #bc4c00; } circle.n2 { fill: #8250df; } circle.n3 { fill: #1a7f37; }
.line.n0 { stroke: #0969da; } .line.n1 { stroke: #bc4c00; } .line.n2 { stroke: #8250df; } .line.n3 { stroke: #1a7f37; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .page { fill: #0d1117; } .grid { stroke: #3d444d; }
circle.n0 { fill: #4493f8; } circle.n1 { fill: #f0883e; } circle.n2 { fill: #ab7df8; } circle.n3 { fill: #3fb950; }
.line.n0 { stroke: #4493f8; } .line.n1 { stroke: #f0883e; } .line.n2 { stroke: #ab7df8; } .line.n3 { stroke: #3fb950; }
}
"""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    )
    title = "<title>Error of samplers against calls of the network</title>"
    return "\n".join(
        [head, title, f"<style>{style}</style>", f'<rect class="page" width="{width}" height="{height}"/>', *parts, "</svg>\n"]
    )


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/sampler_orders.svg")
    arguments = parser.parse_args()
    drawn: dict[str, Curve] = {}
    for process, process_options in PROCESSES.items():
        for name, options in SAMPLERS.items():
            calls, errors = measure(process_options, options)
            slope = math.log2(errors[-1] / errors[-4]) / math.log2(calls[-1] / calls[-4])
            row = {"process": process, "sampler": name, "calls": calls, "errors": [float(f"{e:.2e}") for e in errors]}
            print(json.dumps({**row, "slope": round(slope, 2)}), flush=True)
            if process == "edm":
                drawn[name] = calls, errors
    arguments.picture.write_text(picture(drawn), encoding="utf-8")


if __name__ == "__main__":
    main()
