"""Fréchet distance of a diffusion model's samples by sampler, steps and guidance, beside that of what is no model.

    python benchmarks/steps_quality.py experiments/edm_small [--samples 3000] [--rows dpm_solver:20 ancestral:200]

For runs of recipes/edm/small.yml, recipes/flow/small.yml and their like: data set `digits`, samples made by the validation's
injector `sample`. The figure is the validation's, `fd_pca` (the squared Fréchet distance of pixels, rounded to 8 bits, in the
first principal components of the true pictures), here from all training pictures. Sample n has the noise of position n
and the label of training picture n, from the first again after the last, so that every row starts with the same noise.

A row is `sampler:steps`, with options after commas: `heun:10`, `dpm_solver:20,eta=1`, `dpm_solver:20,guidance=1.5`,
`dpm_solver:20,spacing=log_snr`. Prints one JSON line a row; `deviation` is the standard deviation of the figure by
which samples there happen to be (bootstrap).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.config import Config, load
from dlas.context import Context
from dlas.data.base import create_dataset
from dlas.data.loader import evaluation_items
from dlas.engine.device import memory_format
from dlas.engine.step import State, build_injectors
from dlas.metrics import quantize_8bit
from dlas.metrics.accumulators import Moments
from dlas.metrics.frechet import PixelFrechetDistance
from dlas.observe.pictures import grid

ROWS = [
    *(f"dpm_solver:{steps}" for steps in (5, 10, 20, 100)),
    *("dpm_solver:20,eta=1", "ddim:20", "heun:10", "ancestral:200"),
    *(f"dpm_solver:20,guidance={scale}" for scale in (1.5, 3)),
]
OF_SAMPLER = {"eta", "s_churn", "variance"}
"""Options of a row that are the sampler's; others are the injector's."""
RESAMPLINGS = 50


class Yardstick:
    """Measures pictures against true ones.

    Args:
        true: (N, C, H, W) in [0, 1].
        dimensions: principal components.
    """

    def __init__(self, true: Tensor, dimensions: int) -> None:
        self.metric = PixelFrechetDistance(dimensions=dimensions)
        self.metric.prepare(true.device)
        self.metric.true.update(self.metric.features(quantize_8bit(true)))

    def measure(self, pictures: Tensor) -> dict[str, Any]:
        """The distance of (M, C, H, W), and its standard deviation over other draws of as many."""
        features = self.metric.features(quantize_8bit(pictures))
        generator = torch.Generator().manual_seed(0)
        draws = [
            self._distance(features[torch.randint(len(features), (len(features),), generator=generator)])
            for _ in range(RESAMPLINGS)
        ]
        return {
            "fd_pca": round(self._distance(features), 4),
            "deviation": round(torch.tensor(draws).std().item(), 4),
            "pictures": len(pictures),
        }

    def _distance(self, features: Tensor) -> float:
        self.metric.predicted = Moments(None, features.device)
        self.metric.predicted.update(features)
        return self.metric.compute().item()


def pictures(config: Config, phase: str) -> tuple[Tensor, Tensor]:
    """All pictures (N, C, H, W) of a phase, and their labels (N,)."""
    section = config.datasets["train"]
    items = list(evaluation_items(create_dataset({**section.options, "mode": section.mode}, phase=phase, name=phase)))
    return torch.cat([item["hq"] for item in items]), torch.cat([item["label"] for item in items])


def trained(run: Path, config: Config) -> nn.Module:
    """The generator with the averaged weights of the run's newest checkpoint."""
    options = yaml.safe_load((run / "config.resolved.yml").read_text(encoding="utf-8"))
    network = create_network(options["networks"]["generator"], name="generator")
    newest = (run / "checkpoints/latest").read_text(encoding="utf-8").strip()
    network.load_state_dict(load_file(run / "checkpoints" / newest / "generator.ema.safetensors"))
    return network.to(memory_format=memory_format(config.memory_format)).eval()


def row_settings(row: str) -> list[str]:
    """A row as settings of the options file."""
    head, *options = row.split(",")
    sampler, steps = head.split(":")
    section = "eval.injectors.sample"
    settings = [f"{section}.sampler={{type: {sampler}}}", f"{section}.steps={steps}"]
    for option in options:
        name, _, value = option.partition("=")
        settings.append(f"{section}.{'sampler.' if name in OF_SAMPLER else ''}{name}={value}")
    return settings


def samples(config: Config, network: nn.Module, labels: Tensor, count: int, batch: int) -> Tensor:
    """`count` samples, (count, C, H, W) in [0, 1], as validation makes them."""
    injectors = build_injectors(config.eval.injectors.items())
    made = []
    for first in range(0, count, batch):
        positions = range(first, min(first + batch, count))
        context = Context({"generator": network}, training=False, seed=config.seed, positions=positions)
        state = State({"label": labels[torch.tensor(positions) % len(labels)]})
        for injector in injectors:
            state.update(injector(state, context))
        made.append(state[config.eval.output_state].clamp(0, 1))
    return torch.cat(made)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--rows", nargs="*", default=ROWS)
    parser.add_argument("--sheet", type=Path, help="write the first 100 samples of the last row as a PNG")
    arguments = parser.parse_args()
    file = arguments.run / "config.resolved.yml"
    config = load(file)
    true, labels = pictures(config, "train")
    held_out, _ = pictures(config, "val")
    yardstick = Yardstick(true, config.eval.metric_options["fd_pca"]["dimensions"])

    def show(row: str, made: Tensor, **more: Any) -> None:
        print(json.dumps({"row": row, **yardstick.measure(made), **more}), flush=True)

    noise = torch.randn(arguments.samples, *true.shape[1:], generator=torch.Generator().manual_seed(0))
    show("noise of the pictures' mean and deviation", (noise * true.std() + true.mean()).clamp(0, 1))
    show("the mean picture", true.mean(0).expand(arguments.samples, *true.shape[1:]))
    show("held-out pictures", held_out)
    network = trained(arguments.run, config)
    for row in arguments.rows:
        start = time.perf_counter()
        made = samples(load(file, row_settings(row)), network, labels, arguments.samples, arguments.batch)
        show(row, made, ms_a_sample=round(1e3 * (time.perf_counter() - start) / len(made), 2))
        if arguments.sheet is not None:
            sheet = grid(made[:100].repeat_interleave(4, 2).repeat_interleave(4, 3), columns=20, gap=4)
            Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy()).save(arguments.sheet)


if __name__ == "__main__":
    main()
