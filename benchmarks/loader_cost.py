"""What a training item of paired images costs: read, decode, crop 128 and 32 pixels, flip and turn, tensors of floats.

    python benchmarks/loader_cost.py [--peer-python /path/to/environment/bin/python] [--items 40] [--size 2040x1356]

Four PNGs of photographs with grain, of the size of DIV2K's by default, and their quarter-size partners; one thread, files warm
in memory. Prints CPU milliseconds an item, medians, for each kind of cache once it is filled, and for BasicSR's paired data set
on the same files (`--peer-python`: an environment with the package basicsr 1.4.2).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from dlas.data.base import Request, create_dataset


def make_images(folder: Path, width: int, height: int) -> None:
    """Pairs of PNG files with the grain that photographs have."""
    rng = np.random.default_rng(0)
    for name in ("hr", "lr"):
        (folder / name).mkdir()
    for number in range(4):
        image = Image.fromarray(load_sample_images().images[number % 2]).resize((2040, 1356), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.int16)[:, :: -1 if number > 1 else 1][:height, :width]
        grain = rng.integers(-6, 7, pixels.shape)
        grainy = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        grainy.save(folder / f"hr/{number}.png")
        grainy.resize((width // 4, height // 4), Image.Resampling.BICUBIC).save(folder / f"lr/{number}.png")


def cost(folder: Path, cache: str, items: int, partners: bool) -> float:
    """Median CPU milliseconds an item."""
    options = {"mode": "paired_images", "dataroot_gt": str(folder / "hr"), "scale": 4, "target_size": 128, "cache": cache}
    options |= {"dataroot_lq": str(folder / "lr")} if partners else {}
    options |= {"cache_dir": str(folder / "cache")} if cache == "mapped" else {}
    dataset = create_dataset(options, phase="train", name="bench")
    for index in range(4):
        dataset[Request(index, index, 0)]
    spent = []
    for position in range(items):
        started = time.process_time()
        dataset[Request(position % 4, position, 0)]
        spent.append(1e3 * (time.process_time() - started))
    return round(statistics.median(spent), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with basicsr")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--size", default="2040x1356", help="of the high-quality images, 2040x1356 at most, multiples of 4")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    width, height = map(int, arguments.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, width, height)
        result = {"case": f"paired PNGs of {arguments.size}, crop 128, scale 4", "unit": "CPU ms an item"}
        result |= {cache: cost(folder, cache, arguments.items, True) for cache in ("none", "memory", "mapped")}
        result["mapped_without_lq_files"] = cost(folder, "mapped", arguments.items, False)
        if arguments.peer_python:
            script = Path(__file__).parent / "peers/basicsr_loader.py"
            command = [arguments.peer_python, str(script), str(folder), str(arguments.items)]
            peer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result["basicsr"] = float(peer.stdout.split()[-1])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
