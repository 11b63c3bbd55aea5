"""What RRDB (nf 64, nb 23), the 256-pixel U-Net and the autoregressive network (30 layers of 1024) need on many GPUs.

    python benchmarks/scaling.py [--cluster 8xa100] [--cases rrdb unet ar] [--gpus 1,8,64,512]

Parameters, FLOP, memory and the time of the arithmetic are of a rehearsal of the trainer's own iteration (`dlas check --dry`)
for the cluster's GPU; links are as the makers state them (`dlas plan`). Bytes read and processor time for a sample are measured
here, one thread, files warm in memory: the median of 40 samples of

- rrdb: a PNG tile of 480 x 480 pixels of the built-in photographs, cropped to 192, the low-quality one made by bicubic;
- unet: a PNG of 256 x 256 of them;
- ar: 11.6 s of sound (wav, 24 kHz, 16 bits), brought to 22.05 kHz, and two parts of 2 s of others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import cv2
import numpy as np
import torch

from dlas.config import Config, load
from dlas.data.base import Dataset, Request, Sample, TensorSpec, create_dataset
from dlas.data.images.files import write_whole
from dlas.engine.dryrun import dry_run
from dlas.engine.scaling import STRATEGIES, Workload, find_cluster, plan, render
from dlas.registry import DATASETS

ROOT = Path(__file__).resolve().parent.parent
RATE = 24000
UNET = """\
name: unet
scale: 1
precision: bf16
memory_format: channels_last
datasets:
  train: {mode: planned, batch_size: 8, tensors: {hq: [float32, 3, 256, 256]}}
networks:
  generator:
    which_model_G: guided_unet
    image_size: 256
    model_channels: 256
    out_channels: 6
    num_res_blocks: 2
    attention_resolutions: [8, 16, 32]
    channel_mult: [1, 1, 2, 2, 4, 4]
    num_head_channels: 64
    use_scale_shift_norm: true
    resblock_updown: true
steps:
  generator:
    training: generator
    optimizer: adamw
    optimizer_params: {lr: 1e-4}
    injectors:
      loss: {type: diffusion, in: hq, out: loss, generator: generator, process: {type: vp, schedule: linear, steps: 1000},
             prediction: eps, variance: learned_range, loss: mse}
    losses: {diffusion: {type: direct, key: loss, weight: 1}}
train: {niter: 10, ema: {rate: 0.9999}}
"""
SPEECH = (
    "{mode: planned, batch_size: 16, tensors: {wav: [float32, 1, 255995], conditioning: [float32, 2, 1, 44000], "
    "padded_text: [int64, 200], text_lengths: [int64], wav_lengths: [int64]}}"
)
CASES: dict[str, tuple[str, list[str]]] = {
    "rrdb": ("recipes/esrgan/psnr.yml", ["datasets.train.target_size=192", "datasets.train.batch_size=16"]),
    "unet": (UNET, []),
    "ar": (
        "recipes/tortoise/autoregressive.yml",
        [
            f"datasets.train={SPEECH}",
            "path.pretrain={}",
            "train.micro_batch_size=null",
            "steps.gpt.injectors.mel={type: torch_mel_spectrogram, in: wav, out: mel}",
            "steps.gpt.injectors.clips={type: for_each, subtype: torch_mel_spectrogram, in: conditioning, out: clips}",
        ],
    ),
}


@DATASETS.register("planned")
class Planned(Dataset):
    """Samples that there are only shapes of.

    Args:
        phase: any.
        tensors: type and shape of each entry.
    """

    provides = ("hq", "lq", "wav", "conditioning", "padded_text", "text_lengths", "wav_lengths")

    def __init__(self, phase: str, /, *, tensors: dict[str, Any]) -> None:
        self.tensors = tensors

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample:
        return {key: TensorSpec(tuple(shape), getattr(torch, kind)) for key, (kind, *shape) in options["tensors"].items()}


def configure(case: str, folder: Path) -> Config:
    """The configuration of a case."""
    given, overrides = CASES[case]
    path = ROOT / given
    if "\n" in given:
        path = folder / f"{case}.yml"
        path.write_text(given)
    return load(path, overrides)


def photographs(folder: Path, side: int) -> None:
    """PNG tiles of the built-in photographs."""
    images = create_dataset({"mode": "builtin_photos", "scale": 1}, phase="val", name="photographs")
    for number in range(len(images)):
        image = images[Request(number, number, 0)]["hq"].mul(255).round().byte().permute(1, 2, 0).numpy()[:, :, ::-1]
        if min(image.shape[:2]) < side:
            continue
        for row, column in np.ndindex(image.shape[0] // side, image.shape[1] // side):
            tile = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
            write_whole(folder / f"{number}_{row}_{column}.png", cv2.imencode(".png", tile)[1].tobytes())


def sounds(folder: Path) -> None:
    """Noise, which costs as much as speech in a wav file."""
    folder.mkdir()
    for number in range(4):
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(np.random.default_rng(number).integers(-3000, 3000, int(11.61 * RATE), dtype=np.int16).tobytes())


def reading(case: str, folder: Path) -> tuple[float, float]:
    """Bytes read and seconds of a core for a sample."""
    if case == "ar":
        sounds(folder / "sounds")
        files = list((folder / "sounds").iterdir())
        options: dict[str, Any] = {"mode": "unsupervised_audio", "path": str(folder / "sounds"), "pad_to_samples": 255995}
        options |= {"extra_samples": 2, "extra_sample_length": 44000}
    else:
        photographs(folder / case, 480 if case == "rrdb" else 256)
        files = list((folder / case).iterdir())
        options = {"mode": "paired_images", "dataroot_gt": str(folder / case), "scale": 4, "target_size": 192}
        if case == "unet":
            options = {"mode": "imagefolder", "paths": str(folder / case), "target_size": 256, "skip_lq": True, "scale": 1}
    dataset = create_dataset(options, phase="train", name=case)
    times = []
    for position in range(44):
        start = time.process_time()
        dataset[Request(position % len(dataset), position, 0)]
        times.append(time.process_time() - start)
    size = statistics.mean(file.stat().st_size for file in files)
    return size + (2 * 44000 * RATE / 22050 * 2 if case == "ar" else 0), statistics.median(times[4:])


def main() -> None:
    """Prints a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", default="8xa100")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--gpus", default="1,8,64,512")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    cluster = find_cluster(arguments.cluster)
    counts = [int(each) for each in arguments.gpus.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        for case in arguments.cases:
            config = configure(case, Path(temporary))
            work = Workload.of(dry_run(config, cluster.device), config.datasets["train"].batch_size)
            size, seconds = reading(case, Path(temporary))
            rows = [
                plan(work, cluster, gpus, strategy)
                for gpus in counts
                for strategy in STRATEGIES
                if gpus > 1 or strategy == "ddp"
            ]
            print(f"\n{case}: {size / 1e3:.0f} kB and {seconds * 1e3:.2f} ms of a core a sample")
            print(render(work, cluster, rows, size, seconds), flush=True)


if __name__ == "__main__":
    main()
