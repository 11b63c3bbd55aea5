"""What encoding ahead saves: a training step of latent diffusion from images against one from latents.

    python benchmarks/latent_cost.py [--rounds 10] [--batch 16] [--size 128] [--shrink 4]

Both runs are the trainer's own, data reading included, from the same images: one encodes pictures and captions in every step,
the other reads what `dlas data encode` wrote. Their networks are Stable Diffusion's first autoencoder and U-Net with widths
divided by `--shrink`, so that the encoders cost about the same share of the U-Net's arithmetic as at full size; both shares
are counted and printed. The runs take steps in turn, so that other load on the machine hits both alike. Losses of the first
step are compared. Prints one JSON line: the median over rounds of the paired ratio (from images over from latents), by the
clock of the process on a CPU, which other load touches less, and by that of the wall on a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import numpy as np
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dlas.archs import create_network
from dlas.config import load
from dlas.engine.device import seed_everything
from dlas.engine.encoding import encode_data_sets
from dlas.engine.trainer import Trainer

IMAGES = 64
WORDS = 32
FILE = """\
name: {name}
device: {device}
precision: {precision}
datasets:
  train: {data}
networks:
  autoencoder: {{which_model: autoencoder_kl, trainable: false, channels: {channels}}}
  text: {{which_model: text_embedding, trainable: false, width: {context}, depth: {depth}}}
  denoiser: {{which_model: cross_attention_unet, model_channels: {width}, context_channels: {context}, norm_groups: dlas}}
steps:
  denoiser:
    training: denoiser
    optimizer: adamw
    optimizer_params: {{lr: 1e-4}}
    injectors:
{online}\
      error: {{type: diffusion, in: latents, out: error, generator: denoiser, process: {{type: vp}}, prediction: v,
              conditions: {{context: context}}}}
    losses:
      error: {{type: direct, key: error, weight: 1}}
train: {{niter: 1000000, ema: {{enabled: false}}}}
encode:
  injectors:
{encoders}\
  dtype: fp32
logger: {{print_freq: 1000000, save_checkpoint_freq: 1000000, tensorboard: false}}
path: {{experiments: {folder}}}
"""
INJECTORS = """\
      latents: {type: generator, generator: autoencoder, method: latents, in: hq, out: latents, grad: false}
      tokens: {type: tokenize, in: caption, out: tokens}
      context: {type: generator, generator: text, in: tokens, out: context, grad: false}
"""


def write_images(folder: Path, size: int) -> None:
    """Noise with captions: what the pictures show does not matter here."""
    folder.mkdir()
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noise of the seed {number}, in all the colours that there are\n")


def trainer(folder: Path, name: str, options: dict[str, Any], arguments: argparse.Namespace) -> Trainer:
    """One of the two runs; the one from latents encodes first."""
    source = (
        f"mode: captioned_images, paths: {folder}/images, target_size: {arguments.size}, random_crop: false, rgb_n1_to_1: true"
    )
    ahead = f"mode: latents, folder: {folder}/encoded, keep: [latents, context], source: {{{source}}}"
    data = f"{{{source if name == 'images' else ahead}, batch_size: {arguments.batch}}}"
    online = INJECTORS if name == "images" else ""
    encoders = INJECTORS.replace("      ", "    ")
    path = folder / f"{name}.yml"
    path.write_text(FILE.format(name=name, folder=folder, data=data, online=online, encoders=encoders, **options))
    config = load(path)
    if name == "latents":
        weights = folder / "autoencoder.safetensors", folder / "text.safetensors"
        config.path.pretrain = {file.stem: str(file) for file in weights}
        encode_data_sets(config)
    return Trainer(config)


def shares(size: int, shrink: int, context: int, depth: int, norm_groups: str) -> float:
    """Multiplications of the encoders over those of the U-Net's training step (three forward passes), for one image."""
    with FakeTensorMode():
        autoencoder = create_network({"which_model": "autoencoder_kl", "channels": 128 // shrink, "norm_groups": norm_groups})
        text = create_network({"which_model": "text_embedding", "width": context, "depth": depth})
        unet = {"which_model": "cross_attention_unet", "model_channels": 320 // shrink, "context_channels": context}
        denoiser = create_network({**unet, "norm_groups": norm_groups})
        side = size // 8

        def count(*calls: Any) -> int:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                for call in calls:
                    call()
            return counter.get_total_flops()

        encoding = count(
            lambda: autoencoder.latents(torch.empty(1, 3, size, size)), lambda: text(torch.zeros(1, WORDS, dtype=torch.int64))
        )
        step = count(lambda: denoiser(torch.empty(1, 4, side, side), torch.empty(1), torch.empty(1, WORDS, context)))
    return round(encoding / (3 * step), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="side of the images; a multiple of 64")
    parser.add_argument("--shrink", type=int, default=4, help="widths are those of Stable Diffusion divided by this")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    context, depth = 768 // arguments.shrink, 12
    options = {"channels": 128 // arguments.shrink, "width": 320 // arguments.shrink, "context": context, "depth": depth}
    options |= {"device": arguments.device, "precision": arguments.precision}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "images", arguments.size)
        runs = {"images": trainer(folder, "images", options, arguments)}
        save_encoders(runs["images"], folder)
        runs["latents"] = trainer(folder, "latents", options, arguments)
        losses, times = measure(runs, arguments.rounds)
    ratio = [images / latents for images, latents in zip(times["images"], times["latents"], strict=True)]
    report = {
        "case": f"{arguments.size} px, widths / {arguments.shrink}, batch {arguments.batch}, {arguments.precision}",
        "ratio": round(statistics.median(ratio), 3),
        "quartiles": [round(each, 3) for each in statistics.quantiles(ratio, n=4)[::2]],
        "images_ms": round(1000 * statistics.median(times["images"]), 1),
        "latents_ms": round(1000 * statistics.median(times["latents"]), 1),
        "first_losses": losses,
        "encoders_share_of_arithmetic": shares(arguments.size, arguments.shrink, context, depth, "dlas"),
        "at_full_width_256_px": shares(256, 1, 768, depth, "guided"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(report))


def save_encoders(run: Trainer, folder: Path) -> None:
    """Both runs need encoders with the same weights."""
    from safetensors.torch import save_file

    for name in ("autoencoder", "text"):
        save_file(run.networks[name].state_dict(), folder / f"{name}.safetensors")


def measure(runs: dict[str, Trainer], rounds: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The loss of the first step of each run, and seconds of the later ones."""
    losses: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in runs}
    weights = runs["images"].networks["denoiser"].state_dict()
    runs["latents"].networks["denoiser"].load_state_dict(weights)
    loaders = {name: run._loader() for name, run in runs.items()}
    for number in range(rounds + 2):
        for name in list(runs) if number % 2 else reversed(runs):
            run = runs[name]
            seed_everything(number, run.device)
            clock = time.process_time if run.device.type == "cpu" else time.perf_counter
            start = clock()
            parts = run.iterate(next(loaders[name]))
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            if number == 0:
                losses[name] = parts[0].state["error"].mean().item()
            elif number > 1:  # the first ones allocate
                times[name].append(clock() - start)
    for loader in loaders.values():
        loader.close()
    return losses, times


if __name__ == "__main__":
    main()
