"""Fréchet distance of a StyleGAN2's pictures from the training pictures, beside that of what is no model.

    python benchmarks/stylegan2_quality.py experiments/stylegan2_small [--samples 3000] [--grid grid.png]

For runs of recipes/stylegan2/small.yml and its like: the data set `digits`. The distance is that of `fd_pca` (squared Fréchet
distance of pixels, rounded to 8 bits, in the first 16 principal components of the training pictures). Prints one JSON line a
row; `deviation` is the standard deviation of the figure by which pictures there happen to be (bootstrap).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from PIL import Image
from steps_quality import Yardstick, pictures, trained

from dlas.config import load
from dlas.metrics import quantize_8bit
from dlas.observe.pictures import grid

DIMENSIONS = 16
BATCH = 100


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--grid", type=Path)
    arguments = parser.parse_args()
    config = load(arguments.run / "config.resolved.yml")
    true, held_out = ((pictures(config, phase)[0] + 1) / 2 for phase in ("train", "val"))
    network = trained(arguments.run, config)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(arguments.samples, network.style_dim, generator=generator)
    made = (torch.cat([network(part)[0] for part in z.split(BATCH)]) + 1) / 2
    noise = true.mean() + true.std() * torch.randn(made.shape, generator=generator)
    yardstick = Yardstick(true, DIMENSIONS)
    for name, measured in (
        ("the mean picture", true.mean(0, keepdim=True).expand_as(made)),
        ("noise of the pictures' mean and deviation", noise.clamp(0, 1)),
        ("held-out", held_out),
        ("samples, as many as held-out ones", made[: len(held_out)].clamp(0, 1)),
        ("samples", made.clamp(0, 1)),
    ):
        print(json.dumps({"what": name, **yardstick.measure(measured)}), flush=True)
    if arguments.grid is not None:
        sheet = grid(made[:100].repeat_interleave(2, 2).repeat_interleave(2, 3), columns=20)
        Image.fromarray(quantize_8bit(sheet).mul(255).round().byte().permute(1, 2, 0).numpy()).save(arguments.grid)


if __name__ == "__main__":
    main()
