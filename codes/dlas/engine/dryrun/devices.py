"""What devices can do, and from that a rough estimate of the time of an iteration."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from dlas.engine.dryrun.tracker import Operation
from dlas.engine.flops import peak_rate, shortest
from dlas.engine.precision import has_bf16
from dlas.errors import ConfigurationError
from dlas.registry import nearest

COMPUTE_EFFICIENCY = 0.4
"""Share of a maker's peak rate that matrix products and convolutions are assumed to reach."""

MEASURED_EFFICIENCY = 0.7
"""Share of the measured rate of a large product that they are assumed to reach."""

BANDWIDTH_EFFICIENCY = 0.7
"""Share of the memory bandwidth that all operations are assumed to reach."""

LATENCY = {"cuda": 6e-6, "cpu": 4e-6}
"""Seconds that no operation is assumed to go below: the way through Python, torch and the driver."""


@dataclass(frozen=True)
class Device:
    """Peak figures of a device.

    Args:
        name: what it is called on the command line.
        title: what it is.
        kind: `cuda` (also ROCm, which torch calls so) or `cpu`.
        memory: in 10^9 bytes, as the maker states it; None where it is not known.
        bandwidth: of the memory, in 10^9 bytes per second.
        fp32: 10^12 operations per second in float32.
        tf32: the same for products of float32 tensors where TensorFloat-32 is allowed.
        half: in bfloat16, or float16 where there is no bfloat16, summed in float32, without sparsity.
        bf16: it computes in bfloat16.
        efficiency: share of the three rates that is assumed to be reached.
    """

    name: str
    title: str
    kind: Literal["cuda", "cpu"]
    memory: float | None
    bandwidth: float
    fp32: float
    tf32: float
    half: float
    bf16: bool = True
    efficiency: float = COMPUTE_EFFICIENCY

    def seconds(self, operations: Iterable[Operation], tf32: bool) -> float:
        """Time of one operation after the other: each takes as long as its arithmetic or its memory traffic, whichever is
        longer, and not less than the latency. Nothing overlaps."""
        single = (self.tf32 if tf32 else self.fp32) * 1e12 * self.efficiency
        half = self.half * 1e12 * self.efficiency
        traffic = self.bandwidth * 1e9 * BANDWIDTH_EFFICIENCY
        least = LATENCY[self.kind]
        total = 0.0
        for operation in operations:
            rate = half if operation.dtype in (torch.bfloat16, torch.float16) else single
            total += max(operation.flops / rate, operation.moved / traffic, least)
        return total


def _gpu(
    name: str, title: str, memory: float, bandwidth: float, fp32: float, tf32: float, half: float, bf16: bool = True
) -> tuple[str, Device]:
    return name, Device(name, title, "cuda", memory, bandwidth, fp32, tf32, half, bf16)


# Sources: the makers' data sheets and architecture white papers (NVIDIA: data sheets of T4, V100, A10, A100, L4, L40S, H100 and
# H200; white papers on GA102, Ada and Blackwell RTX. AMD: data sheet of MI300X). Dense rates: figures with sparsity are halved.
DEVICES: dict[str, Device] = dict(
    (
        _gpu("t4", "NVIDIA T4", 16, 300, 8.1, 8.1, 65, bf16=False),
        _gpu("v100", "NVIDIA V100 SXM2 32 GB", 32, 900, 15.7, 15.7, 125, bf16=False),
        _gpu("rtx3090", "NVIDIA GeForce RTX 3090", 24, 936, 35.6, 35.6, 71),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24, 1008, 82.6, 82.6, 165.2),
        _gpu("rtx5090", "NVIDIA GeForce RTX 5090", 32, 1792, 104.8, 104.8, 209.5),
        _gpu("a10", "NVIDIA A10", 24, 600, 31.2, 62.5, 125),
        _gpu("l4", "NVIDIA L4", 24, 300, 30.3, 60, 121),
        _gpu("l40s", "NVIDIA L40S", 48, 864, 91.6, 183, 362),
        _gpu("a100", "NVIDIA A100 SXM 80 GB", 80, 2039, 19.5, 156, 312),
        _gpu("a100-40", "NVIDIA A100 40 GB", 40, 1555, 19.5, 156, 312),
        _gpu("h100", "NVIDIA H100 SXM", 80, 3350, 67, 494, 989),
        _gpu("h200", "NVIDIA H200 SXM", 141, 4800, 67, 494, 989),
        _gpu("mi300x", "AMD Instinct MI300X", 192, 5300, 163.4, 653.7, 1307),
    )
)

_MEASURED_SECONDS = 0.5  # for each figure

THIS_MACHINE = "here"
"""Name under which the machine is measured instead of looked up."""


def find_device(name: str) -> Device:
    """The device of that name; `here` measures this machine, which takes a few seconds.

    Raises:
        ConfigurationError: it is not in the table.
    """
    if name == THIS_MACHINE:
        return measure_this_machine()
    if name.lower() not in DEVICES:
        close = nearest(name, DEVICES)
        hint = f"did you mean '{close}'? " if close else ""
        raise ConfigurationError(f"no device is called '{name}'; {hint}known: {', '.join(DEVICES)}, {THIS_MACHINE}")
    return DEVICES[name.lower()]


def measure_this_machine() -> Device:
    """Times a product of square matrices and a copy, on the GPU if there is one, with the settings of the process."""
    kind: Literal["cuda", "cpu"] = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    bf16 = has_bf16(device)
    fp32 = peak_rate(device, torch.float32, False, _MEASURED_SECONDS)
    tf32 = peak_rate(device, torch.float32, True, _MEASURED_SECONDS) if kind == "cuda" else fp32
    dtype = torch.bfloat16 if bf16 or kind == "cpu" else torch.float16
    half = peak_rate(device, dtype, False, _MEASURED_SECONDS)
    source = torch.empty(2**27 if kind == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / shortest(lambda: target.copy_(source), device, _MEASURED_SECONDS) / 1e9
    memory: float | None
    if kind == "cuda":
        title, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(device).total_memory / 1e9
    else:
        title, memory = f"CPU of this machine, {torch.get_num_threads()} threads", _ram()
    return Device(THIS_MACHINE, title, kind, memory, bandwidth, fp32, tf32, half, bf16, MEASURED_EFFICIENCY)


def _ram() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None
