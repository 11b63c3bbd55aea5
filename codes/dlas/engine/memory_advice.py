"""What to change in a file whose run does not fit into memory, by the forecast of a rehearsal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dlas.config import Config
from dlas.engine.cutting import Cutting
from dlas.engine.dryrun import dry_run
from dlas.engine.dryrun.report import size, table
from dlas.engine.out_of_memory import StepOutOfMemoryError, address_space_left, release_memory
from dlas.engine.precision import has_bf16
from dlas.errors import TrainingError
from dlas.observe.console import LOGGER

MARGIN = 0.9
"""Share of the memory that tensors may fill: the rest is for workspaces of libraries and for gaps."""

_PATIENCE = 60.0  # seconds for all rehearsals
_CHEAP = 2000  # modules times micro-batches; below it a rehearsal takes a few seconds


@dataclass
class _Column:
    """Forecasts for one way to save memory, in bytes by the samples of a micro-batch; the last one fits, if any does."""

    title: str
    setting: str
    config: Config
    peaks: dict[int, int] = field(default_factory=dict)
    fitting: int | None = None


@contextmanager
def advising(config: Config, networks: Mapping[str, nn.Module], device: torch.device) -> Iterator[None]:
    """Turns a shortage of memory within the block, which no smaller micro-batch could help, into advice.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
        return
    except StepOutOfMemoryError as error:
        shortage = error.with_traceback(None)
    release_memory(device)  # behind the handler: its frames hold what the step has left
    raise advise(config, networks, device, shortage)


def advise(
    config: Config, networks: Mapping[str, nn.Module], device: torch.device, shortage: StepOutOfMemoryError
) -> TrainingError:
    """The error that a fixed micro-batch size ends with: what happened, a table of forecasts, and what fits.

    Args:
        config: of the run.
        networks: of the run; those with an attribute `checkpointing` offer it.
        device: of the run.
        shortage: what happened.
    """
    LOGGER.info("out of memory; working out what would fit, which takes %.0f s at most", _PATIENCE)
    try:
        return TrainingError(f"{shortage}.\n{_advice(config, networks, device)}")
    except Exception as error:  # a rehearsal of foreign components may fail in any way; the shortage is the news
        return TrainingError(
            f"{shortage}. Write 'train.micro_batch_size: auto' (a forecast is not possible: {type(error).__name__}: {error})"
        )


def warn_if_too_large(config: Config, networks: Mapping[str, nn.Module], device: torch.device) -> None:
    """Warns of a fixed setting that will not fit by the forecast, perhaps only when a gate opens, if the forecast is cheap."""
    assert config.train is not None
    cutting = Cutting.of(config.train)
    modules = sum(1 for network in networks.values() for _ in network.modules())
    work = modules * cutting.count(config.datasets["train"].batch_size)
    available = available_memory(device)
    if cutting.automatic or device.type != "cuda" or available is None or work > _CHEAP:
        return
    try:
        largest = dry_run(config).largest
    except Exception as error:
        LOGGER.debug("no forecast of memory: %s", error)
        return
    if largest is not None and largest.peak.total > available:
        LOGGER.warning(
            "iteration %d of this run needs %s by the forecast, and %s has %s: expect it to run out of memory; "
            "`train.micro_batch_size: auto` cuts batches as small as needed",
            largest.number,
            size(largest.peak.total),
            device,
            size(available),
        )


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can have: what is free on the device or in this machine, and what the process has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return min(_limits_of_this_machine(), default=None) if device.type == "cpu" else None


def _limits_of_this_machine() -> Iterator[int]:
    left = address_space_left()
    if left is not None:
        yield left
    try:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        if text.isdecimal():
            yield int(text)
    except (AttributeError, ValueError, OSError):
        return


def _advice(config: Config, networks: Mapping[str, nn.Module], device: torch.device) -> str:
    assert config.train is not None
    present = Cutting.of(config.train).size(config.datasets["train"].batch_size)
    available = available_memory(device)
    columns = list(_columns(config, networks, device))
    deadline = time.monotonic() + _PATIENCE
    for column in columns:
        _fill(column, present, available, deadline)
    sizes = sorted({samples for column in columns for samples in column.peaks}, reverse=True)
    rows = [[f"{samples}", *(size(c.peaks[samples]) if samples in c.peaks else "-" for c in columns)] for samples in sizes]
    where = "this machine" if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"
    has = f"{where} has {size(available)} for this run" if available is not None else f"the memory of {where} is not known"
    lines = [
        f"Forecast of the peak memory; {has}, of which tensors should fill {MARGIN:.0%} at most:",
        table(("train.micro_batch_size", *(column.title for column in columns)), rows),
        *_changes(config, columns, present),
    ]
    return "\n".join(lines)


def _columns(config: Config, networks: Mapping[str, nn.Module], device: torch.device) -> Iterator[_Column]:
    yield _Column("as it is", "", config)
    if not config.checkpointing_enabled and any(hasattr(network, "checkpointing") for network in networks.values()):
        yield _Column("checkpointing", "checkpointing_enabled: true", replace(config, checkpointing_enabled=True))
    if config.precision == "fp32" and device.type == "cuda":
        half: Literal["bf16", "fp16"] = "bf16" if has_bf16(device) else "fp16"
        yield _Column(half, f"precision: {half}", replace(config, precision=half))


def _fill(column: _Column, present: int, available: int | None, deadline: float) -> None:
    """Forecasts from the present size downwards, until one fits: smaller ones do, too."""
    train, samples = column.config.train, present
    assert train is not None
    while time.monotonic() < deadline:
        train = replace(train, micro_batch_size=samples, mega_batch_factor=1)
        largest = dry_run(replace(column.config, train=train)).largest
        if largest is None:
            return
        column.peaks[samples] = largest.peak.total
        if available is None or largest.peak.total <= MARGIN * available:
            column.fitting = samples
            return
        if samples == 1:
            return
        samples = -(-samples // 2)


def _changes(config: Config, columns: list[_Column], present: int) -> Iterator[str]:
    assert config.train is not None
    plain = columns[0]
    instead = " in place of 'mega_batch_factor'" if config.train.mega_batch_factor > 1 else ""
    if plain.fitting == present:
        yield "By the forecast the present setting fits: libraries, other programs or gaps in the memory take the rest."
        smaller = -(-present // 2)
        yield f"Try 'train.micro_batch_size: {smaller}'{instead}, or 'auto'." if present > 1 else _nothing_smaller()
        return
    if plain.fitting is not None:
        yield f"Smallest change that fits: 'train.micro_batch_size: {plain.fitting}'{instead}, or 'auto' and the run finds it."
    for column in columns[1:]:
        if column.fitting is not None:
            size_too = "" if column.fitting == present else f" and 'train.micro_batch_size: {column.fitting}'{instead}"
            yield f"Or '{column.setting}'{size_too}."
    if all(column.fitting is None for column in columns):
        yield _nothing_smaller()


def _nothing_smaller() -> str:
    return "Nothing in this table fits: make the samples smaller, take a smaller network, or an optimiser with less state."
