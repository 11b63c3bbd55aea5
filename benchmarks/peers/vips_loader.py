"""Times items that libvips reads as traiNNer-redux has it read them: sequentially, and no further down than the crop.

Run by benchmarks/loader_cost.py with the interpreter of an environment that has `pyvips`, `pyvips-binary` and `numpy`:

    VIPS_CONCURRENCY=1 python vips_loader.py FOLDER ITEMS

FOLDER holds `hr` and `lr`. Waits for a line on standard input before each round, and prints the CPU milliseconds an item, the
median of the round, after it. Only what has to be done is done: crops at random places, channels first, floats; no flips.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import numpy as np
import pyvips

SIZE, SCALE = 128, 4


def item(folder: str, number: int, rng: random.Random) -> list[np.ndarray]:
    hq, lq = (pyvips.Image.new_from_file(f"{folder}/{kind}/{number}.png", access="sequential") for kind in ("hr", "lr"))
    side = SIZE // SCALE
    top, left = rng.randrange(lq.height - side + 1), rng.randrange(lq.width - side + 1)
    crops = (hq.crop(SCALE * left, SCALE * top, SIZE, SIZE), lq.crop(left, top, side, side))
    return [np.ascontiguousarray(crop.numpy().transpose(2, 0, 1)).astype(np.float32) / 255 for crop in crops]


def main() -> None:
    folder, items = sys.argv[1], int(sys.argv[2])
    rng = random.Random(0)
    for number in range(4):
        item(folder, number, rng)
    print("ready", flush=True)
    for _ in sys.stdin:
        spent = []
        for number in range(items):
            started = time.process_time()
            item(folder, number % 4, rng)
            spent.append(1e3 * (time.process_time() - started))
        print(f"{statistics.median(spent):.2f}", flush=True)


if __name__ == "__main__":
    main()
