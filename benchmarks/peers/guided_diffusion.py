"""guided-diffusion's own U-Net and training loop from a clone of its repository, for side-by-side measurements."""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

FOLDER = "guided-diffusion"
"""Where `git clone` puts it."""


def available(folder: Path | None) -> bool:
    """Whether it can be measured."""
    return folder is not None and (folder / FOLDER).is_dir()


def training(folder: Path, options: dict[str, Any], batches: list[Tensor]) -> tuple[nn.Module, Callable[[int], None]]:
    """Its network, and what takes a number of steps of its loop.

    Args:
        folder: with the clone.
        options: of its script `image_train.py`, those that are not its defaults.
        batches: taken in turn; pictures in [-1, 1], each (B, 3, side, side).
    """
    for name in ("blobfile", "mpi4py", "mpi4py.MPI"):  # files in a cloud and talk between machines, neither of which is used
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["mpi4py"].MPI = sys.modules["mpi4py.MPI"]  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder / FOLDER))
    script, loop, logger = (
        importlib.import_module(f"guided_diffusion.{name}") for name in ("script_util", "train_util", "logger")
    )
    logger.configure(dir=tempfile.gettempdir(), format_strs=[])
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    network, diffusion = script.create_model_and_diffusion(**script.model_and_diffusion_defaults() | options)
    for weight in network.parameters():  # so that all of it is at work
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    trainer = loop.TrainLoop(
        model=network,
        diffusion=diffusion,
        data=None,
        batch_size=len(batches[0]),
        microbatch=-1,
        lr=1e-4,
        ema_rate="0.9999",
        log_interval=10,
        save_interval=10000,
        resume_checkpoint="",
    )

    def run(steps: int) -> None:
        for number in range(steps):
            trainer.run_step(batches[number % len(batches)], {})

    return network, run
