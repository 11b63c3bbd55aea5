"""Fréchet distance of a diffusion model's samples by sampler, steps and guidance, beside that of what is no model.

    python benchmarks/steps_quality.py experiments/edm_small [--samples 3000] [--rows ancestral:200 dpm_solver:20]

For runs of recipes/edm/*small.yml, recipes/flow/small.yml and their like: samples are made by validation's injector `sample`.
The figure is the validation's, `fd_pca` (the squared Fréchet distance of pixels, rounded to 8 bits, in the first principal
components of the true pictures), here from all training pictures. Sample n has the noise of position n and the label, if there
are labels, of training picture n, from the first again after the last, so that every row starts with the same noise.

A row is `sampler:steps`, with options after commas: `heun:10`, `dpm_solver:20,eta=1`, `dpm_solver:20,guidance=1.5`,
`dpm_solver:20,spacing=log_snr`. Prints one JSON line a row. By bootstrap: `deviation` is the standard deviation of the
figure by which samples there happen to be, and `bias` how much it is too large because they are not more.

`sampler_alone` is the figure, computed exactly, for normal data with the true pictures' moments and the denoiser that is best
for them: what the sampler and its steps do wrong if the network does nothing wrong. `--alone` prints that alone, in no time.

`--paired` compares each row with the first: `ratio` is of the figures less their biases, `ratio_deviation` its standard
deviation, positions being drawn together. Then all rows get the noise of one Brownian motion a sample (see `OnePath`), by which
stochastic samplers of different steps, each as random as it should be, make nearly the same pictures: the ratio is known far
better than the figures are.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
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
from dlas.diffusion.denoising import Denoised
from dlas.diffusion.processes import Grid
from dlas.diffusion.sampling import START
from dlas.diffusion.spacing import spaced
from dlas.engine.device import memory_format
from dlas.engine.step import State, build_injectors
from dlas.injectors.diffusion_sample import DiffusionSampleInjector
from dlas.metrics import quantize_8bit
from dlas.metrics.features import PixelFeatures
from dlas.metrics.frechet import frechet_distance, principal_directions
from dlas.observe.pictures import grid

ROWS = [
    *(f"dpm_solver:{steps}" for steps in (5, 10, 20, 100)),
    *("dpm_solver:20,eta=1", "ddim:20", "heun:10", "ancestral:200"),
    *(f"dpm_solver:20,guidance={scale}" for scale in (1.5, 3)),
]
OF_SAMPLER = {"eta", "s_churn", "variance"}
"""Options of a row that are the sampler's; others are the injector's."""
RESAMPLINGS = 200


class Yardstick:
    """Measures pictures against true ones.

    Args:
        true: (N, C, H, W) in [0, 1].
        dimensions: principal components.
    """

    def __init__(self, true: Tensor, dimensions: int) -> None:
        self.features = PixelFeatures(0)
        self.features.prepare(true.device)
        pixels = self.features(quantize_8bit(true)).double()
        self.axes = principal_directions(pixels.T.cov(), dimensions)
        self.moments = moments(pixels @ self.axes)

    def project(self, pictures: Tensor) -> Tensor:
        """(M, C, H, W) to (M, dimensions)."""
        return self.features(quantize_8bit(pictures)).double() @ self.axes

    def distances(self, projected: Tensor) -> tuple[float, Tensor]:
        """The distance of projected pictures, and of other draws of them, (RESAMPLINGS,): of the same positions each time."""
        generator = torch.Generator().manual_seed(0)
        count = len(projected)
        draws = [self._distance(projected[torch.randint(count, (count,), generator=generator)]) for _ in range(RESAMPLINGS)]
        return self._distance(projected), torch.tensor(draws)

    def _distance(self, projected: Tensor) -> float:
        return frechet_distance(*moments(projected), *self.moments).item()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of features (N, D)."""
    return features.mean(0), features.T.cov()


def figures(distance: float, draws: Tensor) -> dict[str, float]:
    """What is printed of a distance and its draws."""
    bias = draws.mean().item() - distance
    return {"fd_pca": round(distance, 4), "deviation": round(draws.std().item(), 4), "bias": round(bias, 4)}


def compared(distance: float, draws: Tensor, first: float, first_draws: Tensor) -> dict[str, float]:
    """The ratio of two distances without their biases; a draw has the bias twice."""
    bias, first_bias = draws.mean() - distance, first_draws.mean() - first
    ratio = (distance - bias) / (first - first_bias)
    ratios = (draws - 2 * bias) / (first_draws - 2 * first_bias)
    return {"ratio": round(ratio.item(), 4), "ratio_deviation": round(ratios.std().item(), 4)}


class OnePath(Context):
    """Noise of one Brownian motion a sample, whatever the sampler and its steps.

    A step of the ancestral sampler (of posterior variance), or of DPM-Solver++ with eta 1, from signal-to-noise ratio s to s',
    adds sqrt(s' - s) times standard normal noise to x alpha / sigma^2: the increment of a Brownian motion whose time is s. Here
    it is the sum of increments between all ratios at which any row asks. Each row alone has the noise that it should have,
    independent and standard normal.

    Args:
        steps: signal-to-noise ratios between which the row steps, rising.
        all_steps: of all rows, rising.
        more: arguments of `Context`.
    """

    def __init__(self, *, steps: Sequence[float], all_steps: Sequence[float], **more: Any) -> None:
        super().__init__(**more)
        self.steps, self.all_steps = steps, all_steps

    def randn(self, shape: Iterable[int], stream: str, device: torch.device | str = "cpu") -> Tensor:
        """Noise of the stream `name/k`: of the sampler's k-th step; -1 is what samples begin as."""
        name, _, number = stream.rpartition("/")
        k = int(number)
        if k < 0:
            return super().randn(shape, stream, device)
        first, last = (self.all_steps.index(self.steps[each]) for each in (k, k + 1))
        moved = torch.zeros((), device=device)
        for part in range(first, last):
            length = self.all_steps[part + 1] - self.all_steps[part]
            moved = moved + math.sqrt(length) * super().randn(shape, f"{name}/path {part}", device)
        return moved / math.sqrt(self.steps[k + 1] - self.steps[k])


def signal_to_noise(grid: Grid) -> list[float]:
    """alpha^2 / sigma^2 at a grid's times but the clean end, equal ones of different grids being equal to the last digit."""
    return [float(f"{grid.ratio(k) ** -2:.9g}") for k in range(grid.steps)]


def pictures(config: Config, phase: str) -> tuple[Tensor, Tensor | None]:
    """All pictures (N, C, H, W) of a phase, and their labels (N,), if they have some."""
    section = config.datasets["train"]
    items = list(evaluation_items(create_dataset({**section.options, "mode": section.mode}, phase=phase, name=phase)))
    labels = torch.cat([item["label"] for item in items]) if "label" in items[0] else None
    return torch.cat([item["hq"] for item in items]), labels


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


def samples(
    config: Config, network: nn.Module, labels: Tensor | None, count: int, batch: int, all_steps: Sequence[float] | None
) -> Tensor:
    """`count` samples, (count, C, H, W) in [0, 1], as validation makes them; with `all_steps` by `OnePath`'s noise."""
    injectors = build_injectors(config.eval.injectors.items())
    made = []
    for first in range(0, count, batch):
        positions = range(first, min(first + batch, count))
        common: dict[str, Any] = {"training": False, "seed": config.seed, "positions": positions}
        networks = {"generator": network}
        context = (
            Context(networks, **common)
            if all_steps is None
            else OnePath(steps=signal_to_noise(grid_of(sampling_of(config))), all_steps=all_steps, networks=networks, **common)
        )
        state = State({} if labels is None else {"label": labels[torch.tensor(positions) % len(labels)]})
        for injector in injectors:
            state.update(injector(state, context))
        made.append(state[config.eval.output_state].clamp(0, 1))
    return torch.cat(made)


def sampling_of(config: Config) -> DiffusionSampleInjector:
    """The injector that draws the samples."""
    injectors = [each.injector for each in build_injectors(config.eval.injectors.items())]
    (sampling,) = [each for each in injectors if isinstance(each, DiffusionSampleInjector)]
    return sampling


def grid_of(sampling: DiffusionSampleInjector) -> Grid:
    """Where it asks the network."""
    process, steps = sampling.process, sampling.steps
    own = sampling.spacing == "own"
    return process.grid(
        sampling.sampler.times(process, steps) if own else spaced(process, steps, sampling.spacing, sampling.rho)
    )


def distance_alone(sampling: DiffusionSampleInjector, variances: Tensor) -> float:
    """Squared Fréchet distance of samples by the best denoiser of normal data from these data.

    Samples are then linear in the noises. Each component is followed by its factors of all of them.

    Args:
        sampling: sampler, process and spacing.
        variances: of the data's components, (D,), float64, as the network sees them; their means are 0.
    """
    grid = grid_of(sampling)
    deviations = variances.sqrt()

    def noise(k: int) -> Tensor:
        return torch.eye(grid.steps + 1, dtype=torch.float64)[k + 1].expand(len(variances), -1)

    def denoise(x: Tensor, time: float) -> Denoised:
        level = sampling.process.level(torch.tensor([time], dtype=torch.float64))
        share = level.alpha * variances / (level.alpha.square() * variances + level.sigma.square())
        return Denoised(share[:, None] * x)

    factors = sampling.sampler.run(denoise, grid.sigmas[0] * noise(START), grid, noise)
    return (factors.square().sum(1).sqrt() - deviations).square().sum().item()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=125)
    parser.add_argument("--rows", nargs="*", default=ROWS)
    parser.add_argument("--paired", action="store_true", help="compare all rows with the first, by the same paths of noise")
    parser.add_argument("--alone", action="store_true", help="draw no samples: what samplers do wrong by themselves")
    parser.add_argument("--sheet", type=Path, help="write the first 100 samples of the last row as a PNG")
    arguments = parser.parse_args()
    file = arguments.run / "config.resolved.yml"
    config = load(file)
    true, labels = pictures(config, "train")
    held_out, _ = pictures(config, "val")
    yardstick = Yardstick(true, config.eval.metric_options["fd_pca"]["dimensions"])

    def show(row: str, made: Tensor, first: tuple[float, Tensor] | None = None, **more: Any) -> tuple[float, Tensor]:
        found = yardstick.distances(yardstick.project(made))
        ratio = {} if first is None else compared(*found, *first)
        print(json.dumps({"row": row, **figures(*found), "pictures": len(made), **ratio, **more}), flush=True)
        return found

    rows = {row: load(file, row_settings(row)) for row in arguments.rows}
    scale = config.eval.injectors[config.eval.output_state].options["scale"]  # from what the network sees to [0, 1]
    variances = yardstick.moments[1].diag() / scale**2
    alone = {row: round(scale**2 * distance_alone(sampling_of(options), variances), 4) for row, options in rows.items()}
    if arguments.alone:
        print("\n".join(json.dumps({"row": row, "sampler_alone": distance}) for row, distance in alone.items()))
        return

    noise = torch.randn(arguments.samples, *true.shape[1:], generator=torch.Generator().manual_seed(0))
    show("noise of the pictures' mean and deviation", (noise * true.std() + true.mean()).clamp(0, 1))
    show("the mean picture", true.mean(0).expand(arguments.samples, *true.shape[1:]))
    show("held-out pictures", held_out)
    network = trained(arguments.run, config)
    ratios = {ratio for options in rows.values() for ratio in signal_to_noise(grid_of(sampling_of(options)))}
    all_steps = sorted(ratios) if arguments.paired else None
    first = None
    for row, options in rows.items():
        start = time.perf_counter()
        made = samples(options, network, labels, arguments.samples, arguments.batch, all_steps)
        milliseconds = round(1e3 * (time.perf_counter() - start) / len(made), 2)
        found = show(row, made, first, sampler_alone=alone[row], ms_a_sample=milliseconds)
        first = first or (found if arguments.paired else None)
        if arguments.sheet is not None:
            sheet = grid(made[:100].repeat_interleave(4, 2).repeat_interleave(4, 3), columns=20, gap=4)
            Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy()).save(arguments.sheet)


if __name__ == "__main__":
    main()
