"""How far a network disagrees with itself where two inputs show the same.

    python recipes/esrgan/overlap.py experiments/RUN [experiments/RUN ...]

Of every square of the built-in validation photographs the network enlarges the four corner patches, and what each of the three
others shows in the square that all share is compared with the first. Used are the averaged weights of the newest checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.data.base import create_dataset
from dlas.data.loader import evaluation_items

SCALE, SIDE, PATCH = 4, 32, 24  # of the low-resolution square and its corner patches, as in translational_small.yml
BORDER = (SIDE - PATCH) * SCALE  # distance of the patches' corners in the output
SHARED = PATCH * SCALE - BORDER  # side of what all four share


def squares() -> Tensor:
    """All squares of the photographs that do not overlap and are not cut: (N, 3, SIDE, SIDE)."""
    photographs = create_dataset({"mode": "builtin_photos", "scale": SCALE}, phase="val", name="val")
    found = []
    for item in evaluation_items(photographs):
        columns = item["lq"].unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)  # (1, 3, rows, columns, SIDE, SIDE)
        found.append(columns.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, SIDE, SIDE))
    return torch.cat(found)


@torch.no_grad()
def disagreement(network: nn.Module, images: Tensor) -> tuple[float, float]:
    """Mean distance between the outputs where they show the same, and the deviation of the fine detail that they show there.

    Args:
        network: (N, 3, h, w) to (N, 3, SCALE h, SCALE w).
        images: (N, 3, SIDE, SIDE) in [0, 1].

    Returns:
        Mean absolute difference between the shared squares, over the three pairs with the top left patch; standard deviation
        of the shared square less its mean over 5 x 5 pixels.
    """
    near, far = slice(0, PATCH), slice(SIDE - PATCH, SIDE)
    first = network(images[..., near, near])[..., BORDER:, BORDER:]
    differences = []
    for rows, columns in ((near, far), (far, near), (far, far)):
        other = network(images[..., rows, columns])
        top, left = (0 if each is far else BORDER for each in (rows, columns))
        differences.append((first - other[..., top : top + SHARED, left : left + SHARED]).abs().mean())
    detail = first - F.avg_pool2d(first, 5, 1, 2, count_include_pad=False)
    return float(torch.stack(differences).mean()), float(detail.std())


def trained(run: Path) -> nn.Module:
    """The generator of a run, with the averaged weights of its newest checkpoint."""
    options = yaml.safe_load((run / "config.resolved.yml").read_text(encoding="utf-8"))
    network = create_network({"scale": SCALE, **options["networks"]["generator"]}, name="generator")
    newest = (run / "checkpoints/latest").read_text(encoding="utf-8").strip()
    network.load_state_dict(load_file(run / "checkpoints" / newest / "generator.ema.safetensors"))
    return network.eval()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run with a network called generator")
    images = squares()
    print(f"{len(images)} squares\n{'disagreement':>12}  {'detail':>8}  {'quotient':>8}  run")
    for run in parser.parse_args(arguments).runs:
        distance, detail = disagreement(trained(run), images)
        print(f"{distance:12.6f}  {detail:8.5f}  {distance / detail:8.5f}  {run}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
