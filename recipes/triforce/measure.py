"""What the decoders make of codes, and whether samples show what was asked for.

    python test.py -opt recipes/triforce/small_4_decoder.yml --set path.run=experiments/triforce_small_decoder
    python recipes/triforce/measure.py

First, the codes of the held-out digits are decoded by the autoencoder and by the diffusion, and both are compared with the
digits themselves: the mean squared error of pixels (grey values in [0, 1]), and the Fréchet distance in the 32 features of a
small classifier, which is trained here on the digits of the training set. The distance of as many training digits tells what it
is for real ones. Second, the pictures that test.py wrote are read by that classifier, and by the nearest training digit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "codes"))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.config import load
from dlas.context import Context
from dlas.data.images.digits import NAMES, Digits
from dlas.data.images.files import read_image
from dlas.engine.build import build_networks
from dlas.injectors import create_injector
from dlas.metrics.frechet import frechet_distance

HERE = Path(__file__).resolve().parent
RUN = Path("experiments/triforce_small_decoder")
DECODER = RUN / "checkpoints/1200/decoder.ema.safetensors"
STEPS, BATCH = 1200, 64


class Classifier(nn.Module):
    """Two convolutions and a layer of 32 features, of digits of 8 x 8 pixels in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.features = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 10)."""
        return self.head(F.dropout(self.features(x), 0.3, self.training))

    def read(self, x: Tensor) -> Tensor:
        """Digits (B,) of pictures."""
        return self(x).argmax(dim=1)


def trained(pictures: Tensor, labels: Tensor) -> Classifier:
    """A classifier of these, shifted by up to a pixel."""
    torch.manual_seed(0)
    network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(pictures), (BATCH,))
        shift = torch.randint(-1, 2, (2,)).tolist()
        F.cross_entropy(network(pictures[chosen].roll(shift, (2, 3))), labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.eval()


def digits(phase: str) -> tuple[Tensor, Tensor]:
    """Pictures (N, 1, 8, 8) in [0, 1] and labels (N,)."""
    data = Digits(phase)
    return torch.from_numpy(data.pixels)[:, None] / 255, torch.from_numpy(data.labels)


def distance(network: Classifier, one: Tensor, two: Tensor) -> float:
    """Fréchet distance of two sets of pictures in the classifier's features."""
    features = [network.features(each).double() for each in (one, two)]
    moments = [(each.mean(dim=0), each.T.cov()) for each in features]
    return frechet_distance(*moments[0], *moments[1]).item()


def decoded(real: Tensor, settings: list[str]) -> dict[str, Tensor]:
    """The pictures again, from their codes: by the autoencoder, and drawn by the diffusion."""
    config = load(HERE / "small_4_decoder.yml", [f"path.pretrain.decoder={DECODER}", *settings])
    networks = {name: network.eval() for name, network in build_networks(config, torch.device("cpu")).items()}
    codes = networks["dvae"].get_codebook_indices(2 * real - 1)
    sample = create_injector({"type": "diffusion_sample", **config.eval.injectors["drawn"].options})
    drawn = sample({"best": codes}, Context(networks, training=False, positions=range(len(real))))["drawn"]
    found = {"autoencoder": networks["dvae"].decode(codes)[0], "diffusion": drawn}
    return {name: ((pictures + 1) / 2).clamp(0, 1) for name, pictures in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=RUN / "val", help="folder of the pictures that test.py wrote")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of test.py, for the decoders")
    arguments = parser.parse_args()
    (known, known_labels), (real, labels) = digits("train"), digits("val")
    network = trained(known, known_labels)
    with torch.no_grad():
        print(f"held-out digits that the classifier reads right: {(network.read(real) == labels).float().mean():.3f}")
        some = known[torch.randperm(len(known))[: len(real)]]
        print(f"as many training digits: Fréchet distance {distance(network, some, real):.3f}")
        for name, pictures in decoded(real, arguments.set).items():
            error, far = F.mse_loss(pictures, real), distance(network, pictures, real)
            right = (network.read(pictures) == labels).float().mean()
            print(f"codes decoded by the {name}: squared error {error:.4f}, Fréchet distance {far:.3f}, read right {right:.3f}")
        files = sorted(path for path in arguments.samples.glob("*_*.png"))
        drawn = torch.from_numpy(np.stack([read_image(path)[..., 0] for path in files]))[:, None] / 255
        wanted = torch.tensor([NAMES.index(path.stem.rpartition("_")[2]) for path in files])
        nearest = torch.cdist(drawn.flatten(1), known.flatten(1))
        of_real = torch.cdist(real.flatten(1), known.flatten(1)).min(dim=1).values
        by_classifier = (network.read(drawn) == wanted).float().mean()
        by_nearest = (known_labels[nearest.argmin(dim=1)] == wanted).float().mean()
        novelty = nearest.min(dim=1).values.mean() / of_real.mean()
        print(f"{len(files)} samples: Fréchet distance {distance(network, drawn, real):.3f}")
        print(f"they show the digit asked for: {by_classifier:.3f} by the classifier, {by_nearest:.3f} by the nearest digit")
        print(f"their distance to the nearest training digit, over that of held-out digits: {novelty:.2f}")


if __name__ == "__main__":
    main()
