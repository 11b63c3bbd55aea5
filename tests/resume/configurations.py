"""The runs that are killed: small ones, in which every part that a restart must bring back has a say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

import toys

# Neither log rows nor validations come at a multiple of the checkpoints, so that checkpoints cut the averages of rows in two.
_RHYTHM = ("train.niter=40", "train.val_freq=7", "logger.print_freq=5", "logger.save_checkpoint_freq=3")
_PICTURES = ("logger.visuals=[gen]", "logger.visual_debug_rate=4")


@dataclass(frozen=True)
class Configuration:
    """What is run.

    Args:
        text: the file.
        overrides: `--set` of every sitting.
        in_turn: further `--set` that sittings take in turn and that must make no difference; the undisturbed run goes without.
        prepare: makes the files that the run needs; gets the folder that stands as FOLDER in `text` and `overrides`.
    """

    text: str
    overrides: tuple[str, ...] = ()
    in_turn: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = field(default=lambda folder: None)

    def write(self, folder: Path) -> Path:
        """Writes the file, and all that it needs, into a new folder."""
        folder.mkdir(parents=True)
        self.prepare(folder)
        path = folder / "options.yml"
        plugin = f"plugins: [{Path(toys.__file__).resolve()}]\n"
        path.write_text(plugin + self.text.replace("FOLDER", str(folder)))
        return path

    def arguments(self, file: Path, experiments: Path, sitting: int | None = None) -> list[str]:
        """Arguments of train.py; `sitting` counts the restarts, None is the undisturbed run."""
        sets = [f"path.experiments={experiments}", *(each.replace("FOLDER", str(file.parent)) for each in self.overrides)]
        if sitting is not None and self.in_turn:
            sets.append(self.in_turn[sitting % len(self.in_turn)])
        return ["-opt", str(file), *(word for each in sets for word in ("--set", each))]


def _write_images(folder: Path) -> None:
    """Seven images, two of them damaged."""
    (folder / "images").mkdir()
    for index in range(7):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 20 + index, 3), dtype=np.uint8)
        path = folder / "images" / f"{index}.png"
        Image.fromarray(pixels).save(path)
        if index in (2, 5):
            path.write_bytes(path.read_bytes()[: 40 * index])


_PHOTOS = """\
name: photos
scale: 2
datasets:
  train: {mode: builtin_photos, batch_size: 2, target_size: 32, use_flip: true, use_rot: true}
  val: {mode: toy_pairs}
networks:
  generator: {which_model_G: RRDBNet, nf: 8, nb: 1, gc: 4}
steps:
  generator:
    training: generator
    optimizer: adamw
    optimizer_params: {lr: 1e-3}
    injectors:
      noisy: {type: add_noise, in: lq, out: noisy, scale: 0.05, train: true}
      clean: {type: direct, in: lq, out: noisy, eval: true}
      gen: {type: generator, generator: generator, in: noisy, out: gen}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
train:
  niter: 40
  lr_scheme: {type: CosineAnnealingWarmRestarts, T_0: 9}
  warmup_iter: 6
  ema: {rate: 0.9}
eval: {metrics: [psnr_y, ssim_y], crop_border: 2}
logger: {tensorboard: false}
"""

_FILES = toys.PSNR.replace("name: toy", "name: files").replace(
    "train: {mode: toy_pairs, batch_size: 4}",
    "train: {mode: paired_images, dataroot_gt: FOLDER/images, target_size: 16, on_bad_file: skip, batch_size: 3}",
)

# Five timesteps, so that their losses decide how often each is drawn after a few iterations.
_DIFFUSION = """\
name: diffusion
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 4}
  val: {mode: toy_pairs}
networks:
  generator: {which_model_G: ToyDenoiser}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
      error:
        type: diffusion
        in: hq
        out: error
        generator: generator
        process: {type: vp, schedule: cosine, steps: 5}
        times: {type: loss_second_moment, history: 2}
        noise: nearest
        conditions: {low: lq}
        drop_rate: 0.2
        unconditional: {low: 0}
    losses: {diffusion: {type: direct, key: error, weight: 1}}
train: {niter: 40, mega_batch_factor: 2}
eval:
  injectors:
    gen:
      type: diffusion_sample
      generator: generator
      process: {type: vp, schedule: cosine, steps: 5}
      sampler: {type: ancestral}
      steps: 2
      guidance: 1.5
      like: hq
      conditions: {low: lq}
      unconditional: {low: 0}
      out: gen
  metrics: [psnr]
  crop_border: 2
logger: {tensorboard: false}
"""

CONFIGURATIONS = {
    "psnr": Configuration(toys.PSNR, (*_RHYTHM, *_PICTURES)),
    "photos": Configuration(_PHOTOS, (*_RHYTHM,)),
    "gan": Configuration(toys.GAN, (*_RHYTHM, "steps.generator.after=2", "steps.discriminator.every=2")),
    "accumulation": Configuration(toys.PSNR, (*_RHYTHM, "train.mega_batch_factor=3", "steps.generator.clip_grad_eps=0.1")),
    # The weight makes the first gradients overflow, so that steps are skipped and the scale changes.
    "fp16": Configuration(toys.PSNR, (*_RHYTHM, "precision=fp16", "steps.generator.losses.pix.weight=4000")),
    # A wide network takes longer to write than a step, so that kills hit the writer beside the training.
    "background": Configuration(
        toys.PSNR,
        (
            *_RHYTHM,
            "networks.generator.width=256",
            "checkpoints.keep_last=2",
            "checkpoints.keep_every=9",
            "checkpoints.keep_best={metric: psnr}",
        ),
    ),
    "diffusion": Configuration(_DIFFUSION, _RHYTHM),
    "workers": Configuration(
        _FILES, _RHYTHM, tuple(f"datasets.train.n_workers={number}" for number in (2, 0, 1)), _write_images
    ),
}
