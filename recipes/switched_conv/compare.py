"""Trains a small VQ-VAE on with and without switched convolutions, at equal compute and equal parameters, and prints the table.

    python recipes/switched_conv/compare.py [--seeds 0 1 2] [--experiments experiments]

Runs that are complete are not run again. Each seed has its own pretraining, from which its ways go on with the same samples:

* plain: the network as it is. It does as many multiplications as the switched one.
* longer: the same for as many iterations as take the time of the switched ones.
* switched: 8 kernels for each inner convolution.
* kept: switched, but no kernel is ever out of the choice.
* wider: plain, pretrained too, with as many parameters as the switched one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "codes"))

import torch

from dlas.archs import create_network
from dlas.config import load
from dlas.engine.options import building_options
from dlas.engine.trainer import Trainer

HERE = Path(__file__).resolve().parent
LONGER = 3.5  # plain iterations in the time of a switched one, measured on one thread of a CPU


class Run(NamedTuple):
    """A file with what is set in it."""

    name: str
    file: str
    settings: tuple[str, ...] = ()

    def folder(self, experiments: Path, seed: int) -> Path:
        return experiments / f"switched_conv_{self.name}_{seed}"


def switched_size() -> int:
    config = load(HERE / "small_switched.yml")
    return size({"which_model": "vqvae", **building_options(config.networks["vqvae"], config.scale)})


def size(options: dict[str, object]) -> int:
    return sum(weight.numel() for weight in create_network(options).parameters())


def widened() -> tuple[str, str]:
    """What makes the plain network as large as the switched one."""
    options = {"which_model": "vqvae", **load(HERE / "small_pretrain.yml").networks["vqvae"].options}
    wanted = switched_size()
    width = min(
        range(16, 128, 2), key=lambda width: abs(size({**options, "channel": width, "n_res_channel": width // 2}) - wanted)
    )
    return f"networks.vqvae.channel={width}", f"networks.vqvae.n_res_channel={width // 2}"


def runs() -> dict[str, tuple[Run, Run]]:
    """Pretraining and what goes on from it, by the way's name."""
    pretraining = Run("pretrain", "small_pretrain.yml")
    wide = widened()
    niter = round(load(HERE / "small_plain.yml").train.niter * LONGER)
    longer = Run("longer", "small_plain.yml", (f"train.niter={niter}", f"train.val_freq={niter}"))
    return {
        "plain": (pretraining, Run("plain", "small_plain.yml")),
        "longer": (pretraining, longer),
        "switched": (pretraining, Run("switched", "small_switched.yml")),
        "kept": (pretraining, Run("kept", "small_switched.yml", ("networks.vqvae.switched.dropout=0",))),
        "wider": (Run("pretrain_wider", "small_pretrain.yml", wide), Run("wider", "small_plain.yml", wide)),
    }


def train(run: Run, seed: int, experiments: Path, pretrained: Path | None = None) -> None:
    folder = run.folder(experiments, seed)
    settings = [f"name={folder.name}", f"seed={seed}", f"path.experiments={experiments}", *run.settings]
    if pretrained is not None:
        settings.append(f"path.pretrain.vqvae={pretrained}")
    Trainer(load(HERE / run.file, settings)).run()


def rows(folder: Path, phase: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["phase"] == phase]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--experiments", type=Path, default=Path("experiments"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways = runs()
    for seed in given.seeds:
        for first, then in ways.values():
            train(first, seed, given.experiments)
            niter = load(HERE / first.file).train.niter
            weights = first.folder(given.experiments, seed) / f"checkpoints/{niter}/vqvae.safetensors"
            train(then, seed, given.experiments, weights)
    table(ways, given.seeds, given.experiments)


def table(ways: dict[str, tuple[Run, Run]], seeds: list[int], experiments: Path) -> None:
    """PSNR on the held-out photographs and mean squared error of the last training patches, for each way and seed."""
    print("| way | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | against plain |")
    print("|---|" + "---|" * (len(seeds) + 2))
    reached = {}
    for name, then in {"pretraining": ways["plain"][0], **{name: way[1] for name, way in ways.items()}}.items():
        last = [rows(then.folder(experiments, seed), "val")[-1] for seed in seeds]
        reached[name] = [row["psnr"] for row in last]
        leads = [own - plain for own, plain in zip(reached[name], reached.get("plain", reached[name]), strict=True)]
        spread = f" +- {statistics.stdev(leads):.2f}" if len(leads) > 1 and name != "plain" else ""
        against = "" if name in ("pretraining", "plain") else f"{statistics.mean(leads):+.2f}{spread}"
        figures = " | ".join(f"{value:.2f}" for value in reached[name])
        print(f"| {name} | {figures} | {statistics.mean(reached[name]):.2f} | {against} |")
    print()
    for name, (_, then) in ways.items():
        errors = [
            statistics.mean(row["vqvae/pix"] for row in rows(then.folder(experiments, seed), "train")[-5:]) for seed in seeds
        ]
        print(f"{name}: mean squared error of training patches, last 500 iterations: {statistics.mean(errors):.5f}")


if __name__ == "__main__":
    main()
