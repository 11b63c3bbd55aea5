"""What a validation costs over the bare forwards of its network.

    python benchmarks/validation_cost.py [--pictures 100] [--rounds 5] [--batch-size N] [--no-images]

RRDBNet nf 32 nb 4 on pictures of 64 x 64 that become 256 x 256, with psnr_y and ssim_y: the validation of the trainer, files
and all, and a loop of forwards under `torch.no_grad`, in turn in one process, so that other load on the machine hits both
alike. Both take as many pictures at once, on one thread. Prints one JSON line: quartiles over rounds of the paired ratio of
processor time and by the clock, and where the difference goes, measured apart.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from paired import describe_machine, quartiles
from torch import Tensor

from dlas.config import load
from dlas.data.base import Dataset, Request, Sample
from dlas.data.images.files import write_png
from dlas.engine.interrupt import StopRequest
from dlas.engine.trainer import Trainer
from dlas.layers.resize import imresize
from dlas.metrics import psnr, quantize_8bit, ssim
from dlas.observe.recorder import Recorder
from dlas.registry import DATASETS
from dlas.types import PositiveInt


@DATASETS.register("bench_scenes")
class Scenes(Dataset):
    """Smooth pictures with some noise, in memory already."""

    def __init__(self, phase: str, /, *, scale: PositiveInt = 4, size: PositiveInt = 256, length: PositiveInt = 100) -> None:
        generator = torch.Generator().manual_seed(0 if phase == "train" else 1)
        coarse = torch.rand(length, 3, 16, 16, generator=generator)
        self.hq = imresize(coarse, size=(size, size)).add_(0.02 * torch.randn(3, size, size, generator=generator)).clamp_(0, 1)
        self.lq = imresize(self.hq, 1 / scale).clamp_(0, 1)

    def __len__(self) -> int:
        return len(self.lq)

    def __getitem__(self, request: Request) -> Sample:
        return {"lq": self.lq[request.index], "hq": self.hq[request.index]}


OPTIONS = """\
name: bench
scale: 4
datasets:
  train: {{mode: bench_scenes, batch_size: 4, length: 4}}
  val: {{mode: bench_scenes, length: {pictures}}}
networks:
  generator: {{which_model_G: RRDBNet, nf: 32, nb: 4, gc: 32}}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 1e-4}}
    injectors:
      gen: {{type: generator, generator: generator, in: lq, out: gen}}
    losses:
      pix: {{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}
train: {{niter: 1}}
eval: {{metrics: [psnr_y, ssim_y], batch_size: {batch_size}, save_images: {images}, num_sheets: 0}}
logger: {{tensorboard: false}}
"""


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """How long a call takes: by the clock, and in processor time."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - start_cpu


def parts(output: Tensor, target: Tensor, folder: Path) -> dict[str, float]:
    """Milliseconds a picture of what is done beside the forward."""
    rounded = quantize_8bit(output)
    works: dict[str, Callable[[], object]] = {
        "quantize": lambda: (quantize_8bit(output), quantize_8bit(target)),
        "psnr_y": lambda: psnr(rounded, target, 4, test_y_channel=True),
        "ssim_y": lambda: ssim(rounded, target, 4, test_y_channel=True),
        "png": lambda: write_png(folder / "picture.png", rounded[0].cpu()),
    }
    figures = {}
    for name, work in works.items():
        work()
        each = statistics.median(seconds(work)[0] for _ in range(9))
        figures[name] = round(1e3 * each / (1 if name == "png" else len(output)), 2)
    return figures


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--no-images", action="store_true", help="do not write the pictures (eval.save_images: false)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("dlas").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "options.yml"
        images = "false" if arguments.no_images else "true"
        path.write_text(OPTIONS.format(pictures=arguments.pictures, batch_size=arguments.batch_size, images=images))
        trainer = Trainer(load(path, [f"path.experiments={name}"]))
        trainer.folder.claim()
        recorder = Recorder(trainer.folder.metrics, None)
        network, device = trainer.networks["generator"], trainer.device
        dataset = trainer.datasets["val"]
        assert isinstance(dataset, Scenes)
        batches = [each.to(device) for each in dataset.lq.split(arguments.batch_size)]

        def validate() -> None:
            trainer.validation.run(trainer.progress, recorder, 0.0, StopRequest())

        def bare() -> None:
            network.eval()
            with torch.no_grad():
                for lq in batches:
                    network(lq)
            network.train()

        validate(), bare()  # the first validation measures the baseline, too, and writes its pictures
        wall, cpu, forward = [], [], []
        for number in range(arguments.rounds):
            trainer.progress.step = number + 1
            taken = {work: seconds(work) for work in ((validate, bare) if number % 2 else (bare, validate))}
            wall.append(taken[validate][0] / taken[bare][0])
            cpu.append(taken[validate][1] / taken[bare][1])
            forward.append(1e3 * taken[bare][0] / arguments.pictures)
        with torch.no_grad():
            output = network(batches[0])
        beside = parts(output, dataset.hq[: arguments.batch_size].to(device), Path(name))
        recorder.close()
    result = {
        "case": "validation / bare forwards, RRDB nf 32 nb 4, 64 -> 256 px",
        "ratio": quartiles(cpu),
        "wall_ratio": quartiles(wall),
        "forward_ms": round(statistics.median(forward), 2),
        "beside_ms": beside,
        "pictures": arguments.pictures,
        "batch_size": arguments.batch_size,
        "images_written": not arguments.no_images,
        "rounds": arguments.rounds,
        "device": str(device),
        **describe_machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
