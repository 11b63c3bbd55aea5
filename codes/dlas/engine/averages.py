"""All averages of weights that a run keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from dlas.config.schema import EmaConfig
from dlas.data.images.files import write_whole
from dlas.engine.distributed import Strategy
from dlas.engine.ema import ModelEma, ShardedEma
from dlas.engine.ema_profiles import Profile, constant, from_step, power, warmed_up
from dlas.engine.host_ema import HostEma
from dlas.engine.precision import DTYPES
from dlas.errors import ConfigurationError

SNAPSHOTS = "ema_snapshots"


def profile_of(section: EmaConfig, batch_size: int) -> Profile:
    """How the average that is evaluated weighs the run, of steps of `batch_size` samples."""
    if section.width is not None:
        return from_step(power(section.width), section.start)
    rate = section.rate if section.half_life is None else 0.5 ** (batch_size / section.half_life)
    return from_step((warmed_up if section.warmup else constant)(rate), section.start)


def _kind(section: EmaConfig, network: nn.Module) -> type[ModelEma]:
    if any(hasattr(parameter, "device_mesh") for parameter in network.parameters()):
        if section.device == "cpu":
            raise ConfigurationError("train.ema.device: cpu: with 'strategy: fsdp' averages are cut up; leave it out")
        return ShardedEma
    return HostEma if section.device == "cpu" and any(not each.is_cpu for each in network.parameters()) else ModelEma


class Averages:
    """The average of each trained network, and the tracks from which others are made after the run.

    Args:
        section: `train.ema`.
        networks: the trained networks by name.
        batch_size: samples of a step.

    Attributes:
        main: by network, what is evaluated.
        tracks: by network and width, with `train.ema.post_hoc`.
    """

    def __init__(self, section: EmaConfig, networks: Mapping[str, nn.Module], batch_size: int = 1) -> None:
        self.section = section.post_hoc if section.enabled else None
        self.main: dict[str, ModelEma] = {}
        self.tracks: dict[tuple[str, float], ModelEma] = {}
        if not section.enabled:
            return
        for name, network in networks.items():
            kind = _kind(section, network)
            self.main[name] = kind(network, rate=profile_of(section, batch_size))
            for width in self.section.widths if self.section is not None else []:
                self.tracks[name, width] = kind(network, rate=power(width))

    def update(self, step: int, held: Callable[[str], Tensor | bool]) -> None:
        """Takes the present weights in, after `step` completed steps; `held` tells whose update was held back."""
        for name, ema in self.main.items():
            ema.update(step, held(name))
        for (name, _), ema in self.tracks.items():
            ema.update(step, held(name))

    def all(self) -> Iterable[ModelEma]:
        """Every one."""
        return [*self.main.values(), *self.tracks.values()]

    def state(self) -> dict[str, dict[str, Any]]:
        """Their state dicts by the names that they have in a checkpoint: the network's, with the width for a track."""
        return {name: ema.state_dict() for name, ema in self.main.items()} | {
            f"{name}.{width:g}": ema.state_dict() for (name, width), ema in self.tracks.items()
        }

    def load(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Goes on from `state`; what it does not have starts from its network's present weights.

        Raises:
            CheckpointError: an average is one of another network.
        """
        for name, ema in self.main.items():
            ema.load_state_dict(saved.get(name) or ema.network.state_dict())
        for (name, width), ema in self.tracks.items():
            ema.load_state_dict(saved.get(f"{name}.{width:g}") or ema.network.state_dict())

    def due(self, step: int) -> bool:
        """Whether a snapshot is to be written after this many steps."""
        return self.section is not None and step % self.section.every == 0

    def write_snapshot(self, folder: Path, step: int, strategy: Strategy) -> None:
        """Writes <folder>/ema_snapshots/<step>/<network>.<width>.safetensors, each complete or not at all.

        All processes must take part; the first one writes.
        """
        assert self.section is not None
        dtype = DTYPES[self.section.dtype]
        for (name, width), ema in self.tracks.items():
            state = strategy.gathered(ema.state_dict())
            if not strategy.ranks.main:
                continue
            tensors = {
                key: (value.to("cpu", dtype) if value.is_floating_point() else value.cpu()).contiguous()
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
            write_whole(folder / SNAPSHOTS / str(step) / f"{name}.{width:g}.safetensors", save(tensors))
