"""What the time of an iteration goes into, by a profile: products, other kernels, nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

_PRODUCTS = re.compile(
    r"gem[mv]|conv(?!ert)|cutlass|xmma|nvjet|[wd]grad|fprop|winograd|flash|fmha|attention|linear|\b(add|b|baddb)?mm\b",
    re.IGNORECASE,
)


def is_product(kernel: str) -> bool:
    """Whether a kernel, or an operation of a CPU, multiplies matrices. Inductor names the others after what they follow."""
    return kernel.startswith("triton_tem") if kernel.startswith("triton_") else bool(_PRODUCTS.search(kernel))


@dataclass(frozen=True)
class Shares:
    """Of the time of some iterations: kernels of products, other kernels, none at all."""

    products: float
    other: float
    idle: float

    @classmethod
    def of(cls, kernels: Iterable[tuple[str, float, float]], length: float) -> Shares:
        """From names, starts and ends of kernels; where several run at once, the time is that of the first of them."""
        times, reached = {True: 0.0, False: 0.0}, float("-inf")
        for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
            times[is_product(name)] += max(end - max(start, reached), 0.0)
            reached = max(reached, end)
        length = max(length, sum(times.values()), 1e-9)
        return cls(times[True] / length, times[False] / length, 1 - sum(times.values()) / length)

    @property
    def limit(self) -> str:
        """What would have to be faster for the iterations to be."""
        if self.idle > 0.25:
            return "launch"
        return "compute" if self.products > self.other else "bandwidth"


def profiled(iterate: Callable[[], object], device: torch.device, step: float, count: int = 3) -> Shares:
    """Shares of iterations that take `step` seconds each when nobody looks: profiled, they leave the device idle for longer."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        for _ in range(count):
            iterate()
        wait_for(device)
    kernels = []
    if cuda:
        for each in found.events():
            named_range = getattr(each, "is_user_annotation", False) or "#" in each.name  # of the host, shown on the device
            if each.device_type == torch.autograd.DeviceType.CUDA and not named_range:
                kernels.append((each.name, each.time_range.start, each.time_range.end))
    else:  # of operations only their own time, one after another
        place = 0.0
        for each in found.key_averages():
            kernels.append((each.key, place, place + each.self_cpu_time_total))
            place += each.self_cpu_time_total
    return Shares.of(kernels, 1e6 * count * step)


def wait_for(device: torch.device) -> None:
    """Until all is done that the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
