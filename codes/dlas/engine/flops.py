"""How much arithmetic a run does, and how much its device could do."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dlas.config import Config, to_plain
from dlas.engine.microbatch import MicroBatch
from dlas.engine.stage import STAGE
from dlas.engine.step import TrainingStep


class FlopCounter(TorchDispatchMode):
    """Counts floating-point operations of matrix products, convolutions and attention; a multiply-add is two.

    Left out is what a backward pass computes a second time for want of memory (gradient checkpointing), which is no work of the
    model: it runs with gradients recorded.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None and not (STAGE.name == "backward" and torch.is_grad_enabled()):
            self.total += int(count(*args, **(kwargs or {}), out_val=result))
        return result


class Work:
    """Adds up the arithmetic of steps. In each it is counted once, and taken to be as much for every sample afterwards.

    Args:
        plainly: a context within which networks run as they are: what is compiled cannot be counted.
        file: tells files with other arithmetic apart.

    Attributes:
        of_sample: operations for a sample by step, and by whether it updates its networks.
    """

    def __init__(self, plainly: Callable[[], AbstractContextManager[None]] = nullcontext, file: str = "") -> None:
        self.of_sample: dict[str, float] = {}
        self._plainly = plainly
        self._file = file
        self._done = 0.0

    @contextmanager
    def of(self, step: TrainingStep, parts: Sequence[MicroBatch], completed: int) -> Iterator[None]:
        """A step runs on these micro-batches, after so many completed iterations."""
        samples = sum(len(part.positions) for part in parts)
        kind = step.name if step.updates(completed) else f"{step.name}, no update"
        if kind not in self.of_sample:
            with self._plainly(), FlopCounter() as counter:
                yield
            self.of_sample[kind] = counter.total / samples
        else:
            yield
        self._done += self.of_sample[kind] * samples

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"file": self._file, "of_sample": dict(self.of_sample)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what was counted of the same file."""
        if state.get("file") == self._file:
            self.of_sample |= state["of_sample"]

    def take(self) -> float:
        """Floating-point operations since the last call."""
        done, self._done = self._done, 0.0
        return done


def arithmetic_of(config: Config) -> str:
    """A fingerprint of what decides how much arithmetic a sample takes: networks, steps and the data they train on."""
    plain = to_plain(config)
    parts = plain["scale"], plain["networks"], plain["steps"], plain["datasets"]["train"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def peak_rate(device: torch.device, dtype: torch.dtype, tf32: bool, seconds: float = 0.1) -> float:
    """10^12 floating-point operations a second of a large matrix product, the best of some; measured once in a process.

    Args:
        device: to measure.
        dtype: of the product.
        tf32: TensorFloat-32 is allowed for float32.
        seconds: to spend, at least.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        emulated = device.type == "cpu" and dtype == torch.float16  # a hundred times as slow as float32
        size = 8192 if device.type == "cuda" else 128 if emulated else 1024
        left = torch.ones(size, size, dtype=dtype, device=device)
        return 2 * size**3 / shortest(lambda: left @ left, device, seconds) / 1e12
    finally:
        torch.set_float32_matmul_precision(before)


def shortest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of at least two repetitions that take `seconds` together: other load only ever adds."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
