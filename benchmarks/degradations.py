"""Throughput of the Real-ESRGAN degradation in the loader, against BasicSR's on the same CPU.

    python benchmarks/degradations.py [--peer-python /path/to/environment/bin/python] [--rounds 15]

Each of both reads 480-pixel PNGs, degrades crops of 400 pixels and gives pairs of 256 and 64 pixels, on one thread, in turns of
one batch. Prints CPU milliseconds a sample, medians over rounds, and quartiles of the paired ratios. Without `--peer-python`
(an environment with the package basicsr 1.4.2) only this project's figure is measured.
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

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import cv2
import numpy as np
import torch
from paired import describe_machine, quartiles
from PIL import Image
from sklearn.datasets import load_sample_images

from dlas.data.base import Request, create_dataset

BATCH = 8


def make_images(folder: Path) -> None:
    """Sixteen photographs of 480 x 480 pixels with the grain that photographs have."""
    rng = np.random.default_rng(0)
    for number in range(16):
        image = Image.fromarray(load_sample_images().images[number % 2]).resize((1280, 854), Image.Resampling.BICUBIC)
        left, top = (int(rng.integers(side - 480)) for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + 480, top + 480)), np.int16)
        grain = rng.integers(-3, 4, pixels.shape)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number:02d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with basicsr")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder))
        options = {"mode": "degraded_images", "dataroot_gt": folder, "scale": 4, "degradation": {"type": "realesrgan"}}
        dataset = create_dataset(options, phase="train", name="bench")

        def ours(start: int) -> float:
            started = time.process_time()
            for position in range(start, start + BATCH):
                dataset[Request(position % len(dataset), position, 0)]
            return 1e3 * (time.process_time() - started) / BATCH

        ours(0)
        peer = None
        if arguments.peer_python:
            script = Path(__file__).parent / "peers/basicsr_degradations.py"
            command = [arguments.peer_python, str(script), folder, str(arguments.rounds), str(BATCH)]
            peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert peer.stdout is not None
            assert peer.stdin is not None
            while (line := peer.stdout.readline().strip()) != "ready":
                if not line and peer.poll() is not None:
                    sys.exit("the peer did not start; see its message above")
        own, theirs = [], []
        for number in range(arguments.rounds):
            own.append(ours(number * BATCH))
            if peer is not None and peer.stdin is not None and peer.stdout is not None:
                peer.stdin.write("\n")
                peer.stdin.flush()
                theirs.append(float(peer.stdout.readline()))
    result: dict[str, object] = {"case": f"realesrgan degradation, 256 px at scale 4, batch of {BATCH}"}
    result |= {"ms_per_sample": round(statistics.median(own), 2)}
    if theirs:
        result["basicsr_ms_per_sample"] = round(statistics.median(theirs), 2)
        result["times_faster"] = quartiles([t / o for t, o in zip(theirs, own, strict=True)])
    print(json.dumps({**result, "rounds": arguments.rounds, **describe_machine()}))


if __name__ == "__main__":
    main()
