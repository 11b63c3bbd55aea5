"""What a run's representation tells about digits, beside that of the network before training.

    python recipes/byol/probe.py experiments/byol_small

The representation of each digit (mirrored or cut in no way) is made by the newest checkpoint, and by the same network with the
weights it began with. Its classes are then told by the nearest of the training digits, and by logistic regression on them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from dlas.config import load
from dlas.context import mix_seed
from dlas.data.base import Request, create_dataset
from dlas.engine.build import build_networks
from dlas.engine.device import seed_everything


def main(folder: Path) -> None:
    config = load(folder / "config.resolved.yml")
    options = {"mode": config.datasets["train"].mode, **config.datasets["train"].options}
    sets = [create_dataset(options, phase=phase, name=phase) for phase in ("train", "val")]
    (train, train_labels), (test, test_labels) = (_pictures(each) for each in sets)
    cpu = torch.device("cpu")
    seed_everything(mix_seed(config.seed, "weights"), cpu)
    network = build_networks(config, cpu)["byol"].eval()
    steps = sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())
    for name in ("untrained", f"after {steps[-1]} steps"):
        if name != "untrained":
            network.load_state_dict(load_file(folder / "checkpoints" / str(steps[-1]) / "byol.safetensors"))
        with torch.no_grad():
            features, others = (network.features(each).numpy() for each in (train, test))
        scaler = StandardScaler().fit(features)
        nearest = KNeighborsClassifier(1, metric="cosine").fit(features, train_labels)
        linear = LogisticRegression(max_iter=2000).fit(scaler.transform(features), train_labels)
        found = {
            "nearest neighbour": nearest.score(others, test_labels),
            "logistic regression": linear.score(scaler.transform(others), test_labels),
        }
        print(f"{name}: " + ", ".join(f"{key} {100 * value:.1f} %" for key, value in found.items()))


def _pictures(dataset) -> tuple[torch.Tensor, np.ndarray]:
    samples = [dataset[Request(index, 0, 0)] for index in range(len(dataset))]
    return torch.stack([s["hq"] for s in samples]), np.array([int(s["label"]) for s in samples])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
