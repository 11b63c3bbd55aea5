"""What a training item of paired images costs: read, decode, crop 128 and 32 pixels, flip and turn, tensors of floats.

    python benchmarks/loader_cost.py [--photographs FOLDER] [--items 40] [--rounds 3] [--size 2040x1356]
        [--peer-python /path/to/environment/bin/python] [--vips-python /path/to/environment/bin/python]

Four PNGs, of the size of DIV2K's by default, and their quarter-size partners; one thread, files warm in memory. They are
mosaics of 36 photographs of a folder, of 680 x 452 pixels or more (recipes/data/make_photographs.py makes `train/HR`), or else
two photographs, enlarged, with grain. Prints CPU milliseconds an item, the median of each round, of which the lowest:

- `none`: no cache, decompressed by the package `isal` if it is installed; `none_zlib`: without that package;
- `memory`, `mapped`: from a cache that is filled; `mapped_first_visit`: the mean of the visits that fill it;
- `basicsr` (`--peer-python`: an environment with basicsr 1.4.2): its paired data set on the same files;
- `vips` (`--vips-python`: an environment with pyvips, pyvips-binary and numpy): libvips, read as traiNNer-redux reads.

All are timed in turn within each round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import cv2
import numpy as np
import torch
from paired import describe_machine
from PIL import Image
from sklearn.datasets import load_sample_images

from dlas.data.base import Dataset, Request, create_dataset
from dlas.data.images import png_rows
from dlas.data.images.files import list_images, read_image

WIDTH, HEIGHT = 2040, 1356
PEERS = Path(__file__).parent / "peers"


def grainy() -> list[np.ndarray]:
    """Two photographs, enlarged and with the grain that this takes away, and their mirror images."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(4):
        image = Image.fromarray(load_sample_images().images[number % 2]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.int16)[:, :: -1 if number > 1 else 1]
        images.append((pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8))
    return images


def mosaics(folder: Path) -> list[np.ndarray]:
    """Four mosaics of the middles of nine photographs each, as they are."""
    width, height = WIDTH // 3, HEIGHT // 3
    photographs = (read_image(path) for path in list_images(folder))
    large = (image for image in photographs if image.shape[0] >= height and image.shape[1] >= width)
    tiles = []
    for image in itertools.islice(large, 36):
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        tiles.append(image[top : top + height, left : left + width])
    if len(tiles) < 36:
        sys.exit(f"{folder} has {len(tiles)} photographs of {width} x {height} pixels or more; 36 are needed")
    return [np.vstack([np.hstack(tiles[start + row : start + 9 : 3]) for row in range(3)]) for start in range(0, 36, 9)]


def write(folder: Path, images: list[np.ndarray], width: int, height: int) -> None:
    for name in ("hr", "lr"):
        (folder / name).mkdir()
    for number, pixels in enumerate(images):
        image = Image.fromarray(pixels[:height, :width])
        image.save(folder / f"hr/{number}.png")
        image.resize((width // 4, height // 4), Image.Resampling.BICUBIC).save(folder / f"lr/{number}.png")


def data_set(folder: Path, cache: str, cache_dir: Path | None = None, partners: bool = True) -> Dataset:
    options = {"mode": "paired_images", "dataroot_gt": str(folder / "hr"), "scale": 4, "target_size": 128, "cache": cache}
    options |= {"dataroot_lq": str(folder / "lr")} if partners else {}
    options |= {"cache_dir": str(cache_dir)} if cache_dir else {}
    return create_dataset(options, phase="train", name="bench")


def costs(dataset: Dataset, items: int) -> list[float]:
    """CPU milliseconds of each item."""
    spent = []
    for position in range(items):
        started = time.process_time()
        dataset[Request(position % 4, position, 0)]
        spent.append(1e3 * (time.process_time() - started))
    return spent


def warm(dataset: Dataset, items: int) -> Callable[[], float]:
    costs(dataset, 4)
    return lambda: statistics.median(costs(dataset, items))


def with_zlib(dataset: Dataset, items: int) -> float:
    installed = png_rows._deflate
    png_rows._deflate = zlib
    try:
        return statistics.median(costs(dataset, items))
    finally:
        png_rows._deflate = installed


def first_visits(folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
        return statistics.mean(costs(data_set(folder, "mapped", Path(cache_dir)), 4))


def peer(python: str, script: str, folder: Path, items: int) -> Callable[[], float]:
    """Starts a peer, which then times a round whenever it is asked to."""
    command, environment = [python, str(PEERS / script), str(folder), str(items)], {**os.environ, "VIPS_CONCURRENCY": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    for line in stdout:
        if line == "ready\n":
            break
    else:
        sys.exit(f"{script} ended before it was ready")

    def timed() -> float:
        print(flush=True, file=stdin)
        return float(stdout.readline())

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of photographs to make mosaics of")
    parser.add_argument("--peer-python", help="interpreter of an environment with basicsr")
    parser.add_argument("--vips-python", help="interpreter of an environment with pyvips")
    parser.add_argument("--items", type=int, default=40, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default=f"{WIDTH}x{HEIGHT}", help="of the high-quality images, that at most, multiples of 4")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    width, height = map(int, given.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, mosaics(given.photographs) if given.photographs else grainy(), width, height)
        uncached = data_set(folder, "none")
        ways = {"none": warm(uncached, given.items), "none_zlib": lambda: with_zlib(uncached, given.items)}
        ways["memory"] = warm(data_set(folder, "memory"), given.items)
        ways["mapped"] = warm(data_set(folder, "mapped", folder / "cache"), given.items)
        ways["mapped_without_lq_files"] = warm(data_set(folder, "mapped", folder / "cache", False), given.items)
        ways["mapped_first_visit"] = lambda: first_visits(folder)
        if given.peer_python:
            ways["basicsr"] = peer(given.peer_python, "basicsr_loader.py", folder, given.items)
        if given.vips_python:
            ways["vips"] = peer(given.vips_python, "vips_loader.py", folder, given.items)
        rounds = [{name: way() for name, way in ways.items()} for _ in range(given.rounds)]
        size = sum(path.stat().st_size for path in folder.glob("hr/*.png")) / 4e6
    result = {"case": f"paired PNGs of {given.size} ({size:.1f} MB), crop 128, scale 4", "unit": "CPU ms an item"}
    result |= {"library": png_rows._deflate.__name__}
    result |= {name: round(min(times[name] for times in rounds), 2) for name in ways}
    print(json.dumps({**result, "rounds": given.rounds, **describe_machine()}))


if __name__ == "__main__":
    main()
