"""Gradients averaged over ranks while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor

from dlas.errors import TrainingError
from dlas.observe.console import LOGGER

_SHOWN = 5


@dataclass
class _Bucket:
    """Parameters whose gradients travel together. Behind the gradients lies one number each: how many ranks had one."""

    names: list[str]
    parameters: list[Tensor]
    flat: Tensor
    views: list[Tensor]
    waiting: int = 0
    work: torch.distributed.Work | None = None
    absent: list[int] = field(default_factory=list)  # places of parameters that learn and have no gradient on this rank

    @property
    def counts(self) -> Tensor:
        """How many ranks had a gradient, of each parameter; after the exchange, over the number of ranks."""
        return self.flat[-len(self.parameters) :]


class BucketReducer:
    """Averages the gradients of a set of parameters over all ranks.

    `torch.nn.parallel.DistributedDataParallel` does this for one module that is called once, forward and backward, in a step of
    which nothing else is asked. A step here calls several networks, some of them more than once and by other methods than
    `forward`; its losses come and go; it runs again on smaller micro-batches when memory runs out on one rank. So the networks
    stay unwrapped and only the exchange is taken over, by the same means:

    - gradients are copied into buckets as they come about, from the last parameter to the first, and become views of them;
    - a full bucket travels while the backward pass goes on; buckets travel in one order on all ranks;
    - nothing travels before the last micro-batch.

    What a rank has not got, for want of a path from the loss or because its backward pass failed, travels as zeros when
    `finish` is called: no rank waits for one that has nothing to say. A parameter without a gradient on every rank keeps none,
    as in one process.

    Args:
        step: name of the step, for messages.
        named: the parameters by `network.path.to.parameter`.
        bucket_mb: size of a bucket in MB.
        world_size: number of ranks.
    """

    def __init__(self, step: str, named: Mapping[str, Tensor], bucket_mb: float, world_size: int) -> None:
        self.step = step
        self.world_size = world_size
        self._named = dict(named)
        self._bucket_size = int(bucket_mb * 2**20)
        self._buckets: list[_Bucket] = []
        self._next = 0  # bucket that travels next
        self._armed = False
        self._fired: set[int] = set()
        self._twice = ""
        self._told: set[str] = set()

    def _make_buckets(self) -> None:
        """At the first use: what trains now decides about types and layout, and a step that never runs takes no memory."""
        self._buckets = list(_buckets(self._named, self._bucket_size))
        for bucket in self._buckets:
            for name, parameter in zip(bucket.names, bucket.parameters, strict=True):
                parameter.register_post_accumulate_grad_hook(self._hook(bucket, name))

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """See `GradientExchange`."""
        if not self._buckets:
            self._make_buckets()
        self._arm(last)
        try:
            yield
        finally:
            self._armed = False

    def _arm(self, armed: bool) -> None:
        self._armed = armed
        self._next = 0
        self._fired.clear()
        for bucket in self._buckets:
            bucket.waiting = len(bucket.parameters)
            bucket.work = None

    def _hook(self, bucket: _Bucket, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if not self._armed:
                return
            if id(parameter) in self._fired:
                self._twice = name
                return
            self._fired.add(id(parameter))
            bucket.waiting -= 1
            while self._next < len(self._buckets) and self._buckets[self._next].waiting == 0:
                self._send(self._buckets[self._next])

        return hook

    @torch.no_grad()
    def _send(self, bucket: _Bucket) -> None:
        self._next += 1
        gradients = [(p.grad, view) for p, view in zip(bucket.parameters, bucket.views, strict=True) if p.grad is not None]
        absent = [place for place, parameter in enumerate(bucket.parameters) if parameter.grad is None]
        # What is frozen for now is so on every rank: nobody has to be asked.
        bucket.absent = [place for place in absent if bucket.parameters[place].requires_grad]
        bucket.counts.fill_(1.0)
        if absent:
            bucket.counts[absent] = 0.0
            torch._foreach_zero_([bucket.views[place] for place in absent])
        if gradients:
            sources, targets = zip(*gradients, strict=True)
            torch._foreach_copy_(list(targets), [g.to_dense() if g.is_sparse else g for g in sources])
        for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
            if parameter.grad is not None:
                parameter.grad = view  # the memory of the one that was copied is free again
        bucket.flat.div_(self.world_size)  # before the sum: in 16 bits it could overflow
        bucket.work = torch.distributed.all_reduce(bucket.flat, async_op=True)

    def finish(self) -> None:
        """See `GradientExchange`.

        Raises:
            TrainingError: a parameter got its gradient in two parts, the first of which was on its way already.
        """
        if not self._buckets:  # memory ran out before the first micro-batch
            self._make_buckets()
        while self._next < len(self._buckets):
            self._send(self._buckets[self._next])
        for bucket in self._buckets:
            assert bucket.work is not None
            bucket.work.wait()
        if self._twice:
            raise TrainingError(
                f"step '{self.step}': the gradient of {self._twice} comes about in several passes (reentrant checkpointing?), "
                "which training in several processes does not allow; use torch.utils.checkpoint with use_reentrant=False"
            )
        for bucket in self._buckets:
            if bucket.absent:
                self._settle_absent(bucket)
        self._arm(False)

    def _settle_absent(self, bucket: _Bucket) -> None:
        """Waits for the device, where this rank lacks a gradient."""
        counts = bucket.counts.tolist()
        nowhere = []
        for place in bucket.absent:
            if counts[place] > 0:
                bucket.parameters[place].grad = bucket.views[place]
            else:
                nowhere.append(bucket.names[place])
        new = [name for name in nowhere if name not in self._told]
        if new:
            self._told.update(new)
            LOGGER.warning(
                "step '%s': no loss that is on reaches %s%s, in any process; %s stays as it is. Freeze it if that is meant",
                *(self.step, ", ".join(new[:_SHOWN]), f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""),
                "each" if len(new) > 1 else "it",
            )


def _buckets(named: Mapping[str, Tensor], limit: int) -> Iterator[_Bucket]:
    """Buckets of one type of numbers and at most `limit` bytes, the last parameters first: their gradients come first."""
    waiting: dict[torch.dtype, list[tuple[str, Tensor]]] = {}
    sizes: dict[torch.dtype, int] = {}
    for name, parameter in reversed(list(named.items())):
        dtype, size = parameter.dtype, parameter.nbytes
        if waiting.get(dtype) and sizes[dtype] + size > limit:
            yield _bucket(waiting.pop(dtype))
        sizes[dtype] = size + (sizes[dtype] if waiting.get(dtype) else 0)
        waiting.setdefault(dtype, []).append((name, parameter))
    for members in waiting.values():
        yield _bucket(members)


def _bucket(members: list[tuple[str, Tensor]]) -> _Bucket:
    names, parameters = [name for name, _ in members], [parameter for _, parameter in members]
    total = sum(parameter.numel() for parameter in parameters)
    flat = parameters[0].detach().new_zeros(total + len(parameters))
    views, start = [], 0
    for parameter in parameters:
        # As the parameter lies in memory (channels last, for instance), or fused optimisers take another path.
        strides = torch.empty_like(parameter, device="meta").stride()
        views.append(flat.as_strided(parameter.shape, strides, start))
        start += parameter.numel()
    return _Bucket(names, parameters, flat, views)
