"""Averages of any width, made from the snapshots of a run."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dlas.engine.averages import SNAPSHOTS
from dlas.engine.ema_profiles import Track, post_hoc_factors
from dlas.errors import CheckpointError


def reconstruct(run: Path, network: str, width: float, step: int | None = None) -> tuple[dict[str, Tensor], int]:
    """The power-function average that a run would have kept.

    Args:
        run: its folder.
        network: whose average.
        width: relative width of the average.
        step: at which step of the run; the last snapshot's by default.

    Returns:
        Its state dict, floating-point entries in float32, and the step.

    Raises:
        CheckpointError: there are no snapshots of this network at the step, or one cannot be read.
        ValueError: the width is none of a power-function average.
    """
    files = _snapshots(run, network)
    if not files:
        raise CheckpointError(
            f"{run / SNAPSHOTS} holds no snapshots of '{network}'; a run writes them with 'train.ema.post_hoc: {{every: N}}'"
        )
    last = max(track.step for track in files) if step is None else step
    tracks = [track for track in files if track.step <= last]
    if not any(track.step == last for track in tracks):
        steps = sorted({track.step for track in files})
        raise CheckpointError(
            f"{run / SNAPSHOTS} has no snapshot of step {last}, only from {steps[0]} to {steps[-1]}: take one of "
            f"{', '.join(map(str, steps[-5:]))}"
        )
    total: dict[str, Tensor] = {}
    for track, factor in zip(tracks, post_hoc_factors(tracks, Track(width, last)), strict=True):
        for name, tensor in _read(files[track]).items():
            if not tensor.is_floating_point():
                total[name] = tensor  # a counter or a mask: the last snapshot's
            elif name in total:
                total[name].add_(tensor.double(), alpha=factor)
            else:
                total[name] = tensor.double() * factor
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in total.items()}, last


def _snapshots(run: Path, network: str) -> dict[Track, Path]:
    found = {}
    for folder in (run / SNAPSHOTS).glob("*"):
        for file in folder.glob(f"{network}.*.safetensors"):
            width = file.name.removeprefix(f"{network}.").removesuffix(".safetensors")
            if folder.name.isdigit() and width.replace(".", "", 1).isdigit():
                found[Track(float(width), int(folder.name))] = file
    return dict(sorted(found.items(), key=lambda item: (item[0].step, item[0].width)))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; remove it to go without this snapshot") from error
