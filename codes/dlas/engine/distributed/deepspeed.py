"""Optimiser states, gradients and weights are cut up among the processes by DeepSpeed's ZeRO."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlas.config import Config
from dlas.config.deepspeed_json import deepspeed_json
from dlas.config.wiring.spread import BY_NUMBER
from dlas.engine.distributed.buffers import BufferSharing, broadcast
from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.strategy import Update
from dlas.engine.distributed.zero_state import speak_of_parameters, speak_of_whole_weights
from dlas.engine.precision import Precision
from dlas.errors import ConfigurationError, MissingPackageError


class ZeroSharded:
    """DeepSpeed's ZeRO, one engine for each step; see `Strategy`.

    An engine is wrapped around a module that holds the networks of the step and whose forward pass is the step's, so it clips
    the gradient of all of them together, by the step's own optimiser. With stage 3 every process evaluates the whole set:
    weights are gathered by all processes together, which must therefore run equally often.

    Args:
        config: of the run.
        device: of this process.

    Raises:
        ConfigurationError: the file asks for what DeepSpeed's engines cannot do.
        MissingPackageError: DeepSpeed is not installed.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.section = config.distributed.deepspeed
        _refuse(config, device)
        self._deepspeed = _import(device)
        self.ranks = Ranks.current()
        self.evaluating = Ranks() if self.section.stage == 3 else self.ranks
        self.whole = False
        self._networks: Mapping[str, nn.Module] = {}
        self._trained: dict[str, str] = {}  # by network: the step that trains it
        self._buffers = BufferSharing()

    def spread(self, networks: Mapping[str, nn.Module]) -> None:
        """All ranks get rank 0's values; they are cut up when the optimiser is there.

        Raises:
            ConfigurationError: a network has what DeepSpeed cannot have.
        """
        for name, network in networks.items():
            if any(hasattr(each, "awaits_batch") for each in network.modules()):
                raise ConfigurationError(
                    f"networks.{name} has layers whose first weights follow from the first batch, which DeepSpeed's masters of "
                    "the weights would not learn of; take 'strategy: ddp'"
                )
            if getattr(network, "frozen_at_first", None):
                raise ConfigurationError(
                    f"networks.{name}: parts that are frozen for a while cannot be had with 'strategy: deepspeed', "
                    "which updates what has no gradient as well; take 'ddp' or 'fsdp'"
                )
            scalar = next((key for key, each in network.named_parameters() if not each.dim()), None)
            if scalar is not None and self.section.stage == 3:
                raise ConfigurationError(
                    f"networks.{name}.{scalar} is a single number, which stage 3 of DeepSpeed does not cut up; take "
                    "'deepspeed: {stage: 2}' or 'strategy: fsdp'"
                )
        broadcast(networks.values())
        self._networks = networks

    def exchange(self, step: str, named: Mapping[str, nn.Parameter], optimizer: Optimizer, clip_norm: float) -> ZeroExchange:
        """Starts the step's engine.

        Raises:
            ConfigurationError: another step trains one of its networks, or its optimiser cannot update pieces.
        """
        if type(optimizer).__name__ not in BY_NUMBER:
            raise ConfigurationError(
                f"steps.{step}.optimizer: {type(optimizer).__name__} cannot be had with 'strategy: deepspeed', which updates "
                f"flat pieces of parameters; there are {', '.join(sorted(BY_NUMBER))}, and all with 'ddp'"
            )
        names = list(dict.fromkeys(name.split(".", 1)[0] for name in named))
        for name in names:
            other = self._trained.setdefault(name, step)
            if other != step:
                raise ConfigurationError(
                    f"steps '{other}' and '{step}' both train {name}: with 'strategy: deepspeed' a network belongs to one "
                    "step's engine; take 'ddp' or 'fsdp'"
                )
        groups = [list(group["params"]) for group in optimizer.param_groups]
        options = deepspeed_json(self.config, step, clip_norm, self.ranks.world_size)
        single = (each for name in names for each in self._networks[name].parameters() if not each.dim())
        with _local_rank(self.device), _not_broadcast(single):
            engine = self._deepspeed.initialize(
                model=_Step({name: self._networks[name] for name in names}),
                optimizer=optimizer,
                config=options,
                dist_init_required=False,
            )[0]
        speak_of_parameters(optimizer, groups, engine.optimizer, self.ranks)
        for name in names:
            speak_of_whole_weights(self._networks[name], engine.optimizer, self.ranks)
        return ZeroExchange(engine)

    def any_rank(self, flag: bool) -> bool:
        """The flag of this process: others wait within a backward pass for one that failed there, until it ends."""
        return flag

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """See `BufferSharing`; buffers are not cut up."""
        self._buffers.share(modules)

    def gathered(self, state: Any) -> Any:
        """State dicts of networks, averages and optimisers give whole tensors by themselves."""
        return state


class ZeroExchange:
    """One step's engine; see `GradientExchange`.

    DeepSpeed leaves an update out when the gradient is not finite on any rank. A loss that is not finite shall count as one.

    Args:
        engine: of DeepSpeed.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See `GradientExchange`. Stages 2 and 3 send the gradients of every micro-batch."""
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """See `GradientExchange`."""
        total: Tensor = self.engine(run)
        return total

    def backward(self, loss: Tensor) -> None:
        """See `GradientExchange`."""
        sound = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        try:
            self.engine.backward(loss * sound, scale_wrt_gas=False)
        except RuntimeError as error:
            if self.engine.zero_optimization_stage() == 3:
                error.add_note(
                    "With stage 3 of DeepSpeed weights are given back after each pass, so that gradients of gradients "
                    "(penalties) do not find them: if a loss takes such, write 'distributed.deepspeed: {stage: 2}'"
                )
            raise

    def finish(self) -> None:
        """The backward pass has done it."""

    def update(self) -> Update:
        """See `GradientExchange`."""
        self.engine.step()
        return Update(bool(self.engine.was_step_applied()), float(self.engine.get_global_grad_norm()))


class _Step(nn.Module):
    """Holds the networks that a step trains. Its forward pass is what the step does, which calls them as it likes."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """The total loss."""
        return run()


def _refuse(config: Config, device: torch.device) -> None:
    """What only this machine and the networks tell; `check_spread` sees to what the file does."""
    if Precision(config.precision, device).name == "fp16":
        raise ConfigurationError(
            "precision: fp16 cannot be had with 'strategy: deepspeed': losses are not scaled there; take bf16 or fp32"
        )


def _import(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    try:
        package = importlib.import_module("deepspeed")
        operations = importlib.import_module("deepspeed.ops")
    except ImportError as error:
        raise MissingPackageError("deepspeed", "distributed.strategy: deepspeed", "deepspeed") from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # the import sets another one
    if device.type == "cpu":
        # A faster sum over processes on one machine, which would be compiled at every first start.
        operations.__compatible_ops__["deepspeed_shm_comm"] = False
    return package


@contextmanager
def _not_broadcast(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """DeepSpeed passes these over when it makes processes alike, which it cannot do with single numbers; they are alike."""
    marked: list[Any] = list(parameters)
    try:
        for parameter in marked:
            parameter.ds_optim_param = True  # as weights are marked that differ
        yield
    finally:
        for parameter in marked:
            del parameter.ds_optim_param


@contextmanager
def _local_rank(device: torch.device) -> Iterator[None]:
    """DeepSpeed takes the GPU of this number, whatever torch was told."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
