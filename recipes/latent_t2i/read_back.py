"""Which digits the samples show: each is named after its nearest neighbour among real digits.

    python recipes/latent_t2i/read_back.py experiments/latent_t2i_small/val/val

The folder is that of validation pictures, `<number>_<digit>/<step>.png`, and the digit in the name was the prompt. Prints the
share of pictures that show what was asked for, beside that of real digits that were held out, and how far the samples are from
the real digits: the mean distance to the nearest one, over that of held-out real digits. A share much like the real one and a
distance near 1 are good; a distance near 0 would say that samples are copies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "codes"))

import numpy as np
import numpy.typing as npt

from dlas.data.images.digits import NAMES, Digits
from dlas.data.images.files import read_image

SIDE = 16

Vectors = npt.NDArray[np.float64]


def nearest(pictures: Vectors, known: Vectors) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Which of the known pictures is nearest to each, and how far it is (root of the mean squared difference)."""
    squares = (pictures**2).sum(1)[:, None] + (known**2).sum(1) - 2 * pictures @ known.T
    return squares.argmin(1), np.sqrt(np.maximum(squares.min(1), 0) / pictures.shape[1])


def newest(folder: Path) -> Path:
    """The picture of the last step."""
    return max((path for path in folder.glob("*.png") if path.stem.isdigit()), key=lambda path: int(path.stem))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folders = sorted(path for path in parser.parse_args().folder.iterdir() if path.is_dir())
    drawn = np.stack([read_image(newest(path))[..., 0].reshape(-1) / 255 for path in folders])
    wanted = np.array([NAMES.index(path.name.rpartition("_")[2]) for path in folders])
    train, held_out = (Digits(phase, target_size=SIDE) for phase in ("train", "val"))
    known, real = (data.pixels.reshape(len(data), -1) / 255 for data in (train, held_out))
    of_drawn, far_drawn = nearest(drawn, known)
    of_real, far_real = nearest(real, known)
    print(f"{len(drawn)} samples: {np.mean(train.labels[of_drawn] == wanted):.3f} show the digit of their prompt")
    print(f"{len(real)} real digits, held out: {np.mean(train.labels[of_real] == held_out.labels):.3f} are read right")
    print(f"distance to the nearest real digit, over that of held-out ones: {far_drawn.mean() / far_real.mean():.2f}")


if __name__ == "__main__":
    main()
