"""Times items of BasicSR's own paired data set.

Run by benchmarks/loader_cost.py with the interpreter of an environment that has the package `basicsr` (1.4.2):

    python basicsr_loader.py FOLDER ITEMS

FOLDER holds `hr` and `lr`. Waits for a line on standard input before each round, and prints the CPU milliseconds an item, the
median of the round, after it, so that the caller can run something else in between.
"""

from __future__ import annotations

import statistics
import sys
import time

import cv2
import older_torchvision
import torch

older_torchvision.prepare()
torch.set_num_threads(1)
cv2.setNumThreads(1)

from basicsr.data.paired_image_dataset import PairedImageDataset  # noqa: E402


def main() -> None:
    folder, items = sys.argv[1], int(sys.argv[2])
    options = {"phase": "train", "scale": 4, "gt_size": 128, "use_hflip": True, "use_rot": True, "io_backend": {"type": "disk"}}
    dataset = PairedImageDataset({**options, "dataroot_gt": f"{folder}/hr", "dataroot_lq": f"{folder}/lr"})
    for index in range(4):
        dataset[index]
    print("ready", flush=True)
    for _ in sys.stdin:
        spent = []
        for number in range(items):
            started = time.process_time()
            dataset[number % 4]
            spent.append(1e3 * (time.process_time() - started))
        print(f"{statistics.median(spent):.2f}", flush=True)


if __name__ == "__main__":
    main()
