"""Every process holds all weights and trains on its part of the batch (torch's DistributedDataParallel)."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dlas.config import Config
from dlas.engine.distributed.buffers import BufferSharing, broadcast
from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.single import NoExchange
from dlas.errors import ConfigurationError, TrainingError
from dlas.observe.console import LOGGER

_SHOWN = 5
_READY_TWICE = "mark a variable ready only once"
_CHANGED = "Your training graph has changed in this iteration"
_UNFINISHED = "Expected to have finished reduction in the prior iteration"


class DataParallel:
    """Data parallelism; see `Strategy`.

    Args:
        config: of the run.
        device: of this process.

    Raises:
        ConfigurationError: the file asks for what torch does not have on the device.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        assert config.train is not None, "only training is spread"
        self.section = config.distributed
        if self.section.sync_batchnorm and device.type != "cuda":
            raise ConfigurationError("distributed.sync_batchnorm: torch has it for GPUs only; remove it here")
        self.ranks = self.evaluating = Ranks.current()
        self.whole = True
        # A process that runs out of memory can only tell the others while they do not wait for its gradients.
        self._late = config.train.micro_batch_size == "auto"
        self._buffers = BufferSharing()
        self._wrapped: WeakValueDictionary[tuple[int, ...], DistributedDataParallel] = WeakValueDictionary()
        self._claimed: dict[int, str] = {}  # by parameter: the step that trains it

    def spread(self, networks: Mapping[str, nn.Module]) -> None:
        """All ranks get rank 0's values: machines may draw other ones from the same seed."""
        if self.section.sync_batchnorm:
            for network in networks.values():
                nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place; the names of its state dict stay
        broadcast(networks.values())

    def exchange(
        self, step: str, named: Mapping[str, nn.Parameter], optimizer: Optimizer, clip_norm: float
    ) -> DataParallelExchange:
        """See `DataParallelExchange`.

        Raises:
            ConfigurationError: `static_graph` is on, and two steps train one network.
        """
        del optimizer, clip_norm
        for name, parameter in named.items():
            other = self._claimed.setdefault(id(parameter), step)
            if other != step and self.section.static_graph:
                raise ConfigurationError(
                    f"distributed.static_graph: steps '{other}' and '{step}' both train {name}, whose gradient comes about in "
                    "two ways then; remove it"
                )
        return DataParallelExchange(step, named, self._wrap, self.section.static_graph, self._late)

    def _wrap(self, parameters: list[nn.Parameter]) -> DistributedDataParallel:
        """Steps that train the same parameters share a wrapper, since each wrapper hears of every gradient."""
        key = tuple(map(id, parameters))
        known = self._wrapped.get(key)
        if known is None:
            if self._late and not self._wrapped:
                LOGGER.info(
                    "train.micro_batch_size: auto: gradients travel after the backward pass, so that all processes can cut "
                    "smaller together; write the number in the file once it is found, and they travel during it"
                )
            static = self.section.static_graph
            known = self._wrapped[key] = DistributedDataParallel(
                _Trained(parameters),
                bucket_cap_mb=self.section.bucket_mb,
                find_unused_parameters=self.section.find_unused_parameters and not static,
                static_graph=static,
                gradient_as_bucket_view=True,
                init_sync=False,  # `spread` has seen to it
            )
        return known

    def any_rank(self, flag: bool) -> bool:
        """Of this process where gradients travel early: others wait within their backward pass for one that failed there."""
        return self.ranks.any(flag) if self._late else flag

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """See `BufferSharing`."""
        self._buffers.share(modules)

    def gathered(self, state: Any) -> Any:
        """It is whole everywhere."""
        return state


class _Trained(nn.Module):
    """Holds what a step trains. Its forward pass is what the step does, which calls networks as it likes."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.parameters_of_step = nn.ParameterList(parameters)

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """The total loss."""
        return run()


class DataParallelExchange(NoExchange):
    """Averages the gradients of a step over all ranks; see `GradientExchange`.

    `DistributedDataParallel` watches parameters, not calls: around a module that holds the parameters of the step and whose
    forward pass is the step's, it serves several networks, called in any way. It is made when the step first runs, and again
    when other parameters learn than before (`networks.<name>.freeze`).

    Gradients travel while the backward pass of the last micro-batch goes on; where no micro-batch was the last one, in
    `finish`. A parameter that has a gradient on some ranks only gets the mean with zeros for the others; one without any keeps
    none, as in one process.

    Args:
        step: name of the step, for messages.
        named: the parameters by `network.path.to.parameter`.
        wrap: makes or finds the wrapper of parameters.
        static: whether it was told that the graph stays the same.
        late: gradients travel in `finish` only.
    """

    def __init__(
        self,
        step: str,
        named: Mapping[str, nn.Parameter],
        wrap: Callable[[list[nn.Parameter]], DistributedDataParallel],
        static: bool,
        late: bool,
    ) -> None:
        self.step = step
        self._named = dict(named)
        self._wrap = wrap
        self._static = static
        self._late = late
        self._learning: list[str] = []
        self._wrapper: DistributedDataParallel | None = None
        self._travels = False
        self._told: set[str] = set()
        self._constant: list[str] | None = None  # what has no gradient, in a graph that stays the same

    def _current(self) -> DistributedDataParallel | None:
        """The wrapper of what learns now; None where nothing does, and the step will say so."""
        learning = [name for name, parameter in self._named.items() if parameter.requires_grad]
        if learning != self._learning:
            if self._wrapper is not None:
                self._wrapper = None
                gc.collect()  # its hooks and buckets live in reference cycles
            self._wrapper = self._wrap([self._named[name] for name in learning]) if learning else None
            self._learning, self._constant = learning, None
        return self._wrapper

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        """See `GradientExchange`."""
        wrapper = self._current()
        total: Tensor = run() if wrapper is None else wrapper(run)
        return total

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See `GradientExchange`.

        Raises:
            TrainingError: gradients come about in a way that `DistributedDataParallel` cannot follow.
        """
        self._travels = last and not self._late
        try:
            wrapper = self._current()
            with nullcontext() if self._travels or wrapper is None else wrapper.no_sync():
                yield
        except RuntimeError as error:
            explained = self._explained(str(error))
            if explained is None:
                raise
            raise TrainingError(explained) from error

    def finish(self) -> None:
        """See `GradientExchange`.

        Raises:
            TrainingError: a parameter has no gradient, and the file says that all have one.
        """
        names = self._without_gradient()
        wrapper = self._wrapper
        assert wrapper is not None, "there was a backward pass"
        if names and not wrapper.find_unused_parameters and not self._static:
            raise TrainingError(self._explained_unused(names))
        if not self._travels:
            present = [self._named[name] for name in self._learning if self._named[name].grad is not None]
            wrapper(lambda: _Arrival.apply(*(present or [self._named[name] for name in self._learning]))).backward()
            names = self._without_gradient()
        if self._static:
            self._constant = names if self._constant is None else self._constant
            if names != self._constant:
                raise TrainingError(
                    self._explained_change([name for name in self._learning if (name in names) != (name in self._constant)])
                )
        new = [name for name in names if name not in self._told]
        if new:
            self._told.update(new)
            LOGGER.warning(
                "step '%s': no loss that is on reaches %s, in any process; %s stays as it is. Freeze it if that is meant",
                *(self.step, _listed(new), "each" if len(new) > 1 else "it"),
            )

    def _without_gradient(self) -> list[str]:
        return [name for name in self._learning if self._named[name].grad is None]

    def _explained(self, message: str) -> str | None:
        """What an error of `DistributedDataParallel` means here; None if it is none."""
        if _READY_TWICE in message:
            return (
                f"step '{self.step}': a gradient comes about in several passes (reentrant checkpointing?), which training in "
                "several processes does not allow; use torch.utils.checkpoint with use_reentrant=False, or, if every "
                "iteration does the same, set distributed.static_graph: true"
            )
        if _CHANGED in message:
            return self._explained_change([])
        if _UNFINISHED in message:
            found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", message)
            numbers = [int(number) for number in found[1].split()] if found is not None else []
            return self._explained_unused([self._learning[number] for number in numbers if number < len(self._learning)])
        return None

    def _explained_unused(self, names: list[str]) -> str:
        return (
            f"step '{self.step}': no loss that is on reaches {_listed(names) or 'some parameters'} in this process; set "
            "distributed.find_unused_parameters: true, or freeze what is not to learn (networks.<name>.freeze)"
        )

    def _explained_change(self, names: list[str]) -> str:
        what = f" ({_listed(names)})" if names else ""
        return (
            f"step '{self.step}': its losses do not reach the same parameters as at first{what}, and distributed.static_graph "
            "says that every iteration does the same; remove it"
        )


class _Arrival(torch.autograd.Function):
    """A zero whose backward pass adds nothing to the gradients of tensors, but tells that they are there."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
