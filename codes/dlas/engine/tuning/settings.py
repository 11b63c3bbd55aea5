"""Settings that change how fast a file trains, and hardly or not at all what it computes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

import torch

from dlas.config import Config
from dlas.config.schema import CompileConfig
from dlas.engine.compiling import section_of
from dlas.engine.cutting import Cutting
from dlas.engine.precision import Precision, has_bf16

Axis = Literal["micro", "precision", "format", "compile", "workers"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True, order=True)
class Setting:
    """One way to train.

    Args:
        micro_batch: most samples of a micro-batch.
        precision: fp32, bf16 or fp16.
        memory_format: contiguous or channels_last.
        n_workers: processes that read ahead.
        compiled: networks are compiled.
        mode: torch.compile's, if they are.
    """

    micro_batch: int
    precision: str
    memory_format: str
    n_workers: int
    compiled: bool = False
    mode: str = "default"

    @staticmethod
    def of(config: Config, device: torch.device) -> Setting:
        """What the file says; `auto` is what it comes to on the device."""
        assert config.train is not None
        train = config.datasets["train"]
        size = Cutting.of(config.train).size(train.batch_size)
        section, precision = section_of(config), Precision(config.precision, device).name
        mode = section.mode if section is not None else "default"
        return Setting(size, precision, config.memory_format, train.n_workers, section is not None, mode)

    @property
    def key(self) -> str:
        """A name for the record of measurements."""
        return "/".join(str(value) for value in asdict(self).values())

    def applied(self, config: Config, batch_size: int | None = None) -> Config:
        """The configuration with this setting, and with another batch size if one is given."""
        assert config.train is not None
        section = config.datasets["train"]
        compile_ = replace(section_of(config) or CompileConfig(), mode=cast(Any, self.mode)) if self.compiled else False
        train = replace(section, n_workers=self.n_workers, batch_size=batch_size or section.batch_size)
        return replace(
            config,
            precision=cast(Any, self.precision),
            memory_format=cast(Any, self.memory_format),
            compile=compile_,
            datasets={**config.datasets, "train": train},
            train=replace(config.train, micro_batch_size=self.micro_batch, mega_batch_factor=1),
        )

    def entries(self) -> dict[str, Any]:
        """What a file says to have it."""
        return {
            "precision": self.precision,
            "memory_format": self.memory_format,
            "compile": {"mode": self.mode} if self.compiled else False,
            "datasets": {"train": {"n_workers": self.n_workers}},
            "train": {"micro_batch_size": self.micro_batch, "mega_batch_factor": 1},
        }


def numeric_settings(own: Setting, batch_size: int, device: torch.device, vary: Sequence[Axis]) -> list[Setting]:
    """The file's own setting first, then the others that `vary` allows, all with its number of workers.

    Where compiling is looked at afterwards, none of them is compiled.

    Args:
        own: the file's.
        batch_size: of the file; micro-batches are halves, quarters, ... of it, so that no result changes.
        device: of the run.
        vary: what may change.
    """
    own = replace(own, compiled=own.compiled and "compile" not in vary)
    sizes = {own.micro_batch}
    if "micro" in vary:
        size = batch_size
        while size:
            sizes.add(size)
            size //= 2
    precisions, formats = {own.precision}, {own.memory_format}
    if "precision" in vary:
        precisions |= {"fp32", *(["bf16"] if has_bf16(device) else ["fp16"] if device.type == "cuda" else [])}
    if "format" in vary:
        formats |= {"contiguous", "channels_last"}
    found = {Setting(s, p, f, own.n_workers, own.compiled, own.mode) for s in sizes for p in precisions for f in formats}
    return [own, *sorted(found - {own}, reverse=True)]


def compile_settings(chosen: Setting, own: Setting, device: torch.device, vary: Sequence[Axis]) -> list[Setting]:
    """The chosen setting first, then the same with networks compiled: as the file says, and on CUDA by CUDA graphs, too."""
    if "compile" not in vary:
        return [chosen]
    modes = dict.fromkeys([own.mode, "default", *(["reduce-overhead"] if device.type == "cuda" else [])])
    return [chosen, *(replace(chosen, compiled=True, mode=mode) for mode in modes)]


def worker_settings(chosen: Setting, vary: Sequence[Axis]) -> list[Setting]:
    """The chosen setting first, then the same with other numbers of workers."""
    cores = os.cpu_count() or 1
    counts = sorted({0, 1, 2, min(cores, 4), min(cores, 8)} - {chosen.n_workers}) if "workers" in vary else []
    return [chosen, *(replace(chosen, n_workers=count) for count in counts if count <= cores)]
