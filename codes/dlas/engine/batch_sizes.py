"""Gives steps what `train.noise_scale` and `train.batch_size_optimizer` ask for, and reads it at log lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dlas.config import Config
from dlas.engine.cutting import Cutting
from dlas.engine.distributed import Strategy
from dlas.engine.gathering import Gathering
from dlas.engine.noise_scale import NoiseScale
from dlas.engine.step import TrainingStep
from dlas.errors import ConfigurationError


def equip(
    config: Config,
    steps: Sequence[TrainingStep],
    networks: Mapping[str, nn.Module],
    cutting: Cutting,
    strategy: Strategy,
    device: torch.device,
) -> None:
    """Lets steps measure their noise scale and gather batches, where the file says so.

    Raises:
        ConfigurationError: it cannot be had in this run.
    """
    assert config.train is not None
    batch_size = config.datasets["train"].batch_size
    measured, gathered = config.train.noise_scale, config.train.batch_size_optimizer
    if measured is not None:
        _check_noise_scale(cutting.automatic or cutting.count(batch_size // strategy.ranks.world_size) > 1, strategy)
    if gathered is not None and gathered.type == "noise_scale" and measured is None:
        raise ConfigurationError(
            "train.batch_size_optimizer: 'type: noise_scale' goes by a measurement; write 'train.noise_scale: {}', too"
        )
    options = config.datasets["train"].options
    budget = next((key for key in ("batch_seconds", "max_tokens") if options.get(key) is not None), None)
    if (measured or gathered) and budget is not None:
        raise ConfigurationError(
            f"datasets.train.{budget} makes batches of different sizes, by which train.noise_scale and "
            "train.batch_size_optimizer cannot go; remove one of them"
        )
    for step in steps:
        if measured is not None:
            own = {id(parameter) for parameter in step.parameters}
            trained = {name: [p for p in networks[name].parameters() if id(p) in own] for name in step.trained}
            step.noise_scale = NoiseScale(measured, step.name, trained, strategy.ranks, device, not strategy.whole)
        if gathered is not None:
            step.gathering = Gathering(gathered, step.name, step.named_parameters(), config.seed, batch_size)


def _check_noise_scale(several_parts: bool, strategy: Strategy) -> None:
    if not strategy.whole and not several_parts:
        raise ConfigurationError(
            "train.noise_scale with 'strategy: fsdp' compares the first micro-batch with the whole batch, since no process has "
            "the gradient of its own part: write 'train.mega_batch_factor: 2' or more, or take 'ddp'"
        )
    if not strategy.ranks.many and not several_parts:
        raise ConfigurationError(
            "train.noise_scale compares the gradients of two sizes of batches, and here is only one: write "
            "'train.mega_batch_factor: 2' or more, or start several processes"
        )


def read(step: TrainingStep) -> dict[str, float]:
    """Figures of a step for a log line; waits for the device. Batches that grow with the noise scale do so now."""
    values: dict[str, float] = {}
    if step.noise_scale is not None:
        values |= step.noise_scale.figures()
    if step.gathering is not None:
        step.gathering.grow(step.noise_scale.noise_scales() if step.noise_scale is not None else {})
        values |= step.gathering.figures()
    return values


def summary(steps: Sequence[TrainingStep]) -> list[str]:
    """Lines for the end of a run: what other batches would come to."""
    return [line for step in steps if step.noise_scale is not None for line in step.noise_scale.summary()]
