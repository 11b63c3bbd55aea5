"""What a training needs on many GPUs, on paper: memory, communication and data, from a rehearsal and the makers' figures.

With P trained parameters, N GPUs in n machines of g, and per GPU a link of B bytes a second inside its machine (one direction),
and a network of W bytes a second for each machine:

- bringing M bytes together from all GPUs, or adding M bytes up with a part for each, takes
  ``(g - 1) (M / (g B) + a) + (n - 1) (M / (n W) + a)``: rings inside machines, and over machines with a ring for each GPU of a
  machine; a is the latency of a step.
- `ddp` adds gradients up and shares the sum: twice that of 4 P bytes. ZeRO 1 and 2 send as much, in other parts.
- `fsdp` (ZeRO 3) brings the weights together for the forward and the backward pass, and adds gradients up: two of w P bytes, w
  being 4 or 2, and one of 4 P.

Source: Thakur et al., "Optimization of Collective Communication Operations in MPICH"; Rajbhandari et al., arXiv 1910.02054.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dlas.engine.dryrun.devices import DEVICES, Device, find_device
from dlas.engine.dryrun.rehearsal import DryRun
from dlas.engine.dryrun.report import size, table
from dlas.errors import ConfigurationError

Strategy = Literal["ddp", "zero1", "zero2", "fsdp"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

LINK_EFFICIENCY = 0.7
"""Share of the makers' rates of links and networks that is assumed to be reached."""

BACKWARD = 2 / 3
"""Share of the arithmetic that the backward pass is: what gradients can be sent behind."""

LATENCY = 1e-5
"""Seconds that each step of a ring is assumed to take besides."""

_GRADIENT = 4  # bytes


@dataclass(frozen=True)
class Cluster:
    """Machines with GPUs.

    Args:
        device: of which each GPU is one.
        per_machine: GPUs in a machine.
        link: between the GPUs of a machine, in 10^9 bytes a second for each GPU and direction.
        network: between machines, in 10^9 bytes a second for each machine and direction.
    """

    device: Device
    per_machine: int
    link: float
    network: float

    def gather(self, count: float, gpus: int) -> float:
        """Seconds to bring so many bytes together on every GPU, each having an equal part; or for the way back, adding up."""
        inside = min(gpus, self.per_machine)
        machines = -(-gpus // self.per_machine)
        sent = (inside - 1) / inside * count / self.link + (machines - 1) / machines * count / self.network
        return sent / (LINK_EFFICIENCY * 1e9) + (inside + machines - 2) * LATENCY


# By GPU: link and network. Sources: data sheets of DGX A100, H100 and H200 (NVLink 600 and 900 GB/s in both directions, eight
# adapters of 200 and 400 Gbit/s), of boards with MI300X (seven links of 128 GB/s both ways, eight of 400 Gbit/s), and for the
# others PCI Express of the card (16 lanes; 3.0: 15.75, 4.0: 31.5, 5.0: 63 GB/s) and one adapter of 100 Gbit/s.
_WIRES: dict[str, tuple[float, float]] = {
    "a100": (300, 200),
    "a100-40": (300, 200),
    "h100": (450, 400),
    "h200": (450, 400),
    "mi300x": (448, 400),
    "v100": (150, 50),
    "t4": (15.75, 12.5),
    "rtx3090": (31.5, 12.5),
    "rtx4090": (31.5, 12.5),
    "rtx5090": (63, 12.5),
    "a10": (31.5, 12.5),
    "l4": (31.5, 12.5),
    "l40s": (31.5, 12.5),
}


def find_cluster(name: str, link: float | None = None, network: float | None = None) -> Cluster:
    """The cluster called `8xh100`: machines with eight of this GPU each.

    Args:
        name: GPUs in a machine, `x`, and the GPU's name as `dlas check --dry --device` has it.
        link: in place of the usual one, in 10^9 bytes a second, as for `Cluster`.
        network: likewise.

    Raises:
        ConfigurationError: the name is not one.
    """
    count, _, device = name.lower().partition("x")
    if not count.isdecimal() or int(count) < 1:
        raise ConfigurationError(
            f"a cluster is called after the GPUs of a machine, like 8xh100; got '{name}' (known GPUs: {', '.join(DEVICES)})"
        )
    usual = _WIRES.get(device, (None, None))
    chosen = [given if given is not None else known for given, known in zip((link, network), usual, strict=True)]
    found = find_device(device)
    if chosen[0] is None or chosen[1] is None:
        raise ConfigurationError(
            f"nothing is known of the links of '{device}'; give --link and --network in 10^9 bytes a second"
        )
    return Cluster(found, int(count), chosen[0], chosen[1])


@dataclass(frozen=True)
class Workload:
    """What one GPU does in an iteration, when it holds everything.

    Args:
        samples: of its batch.
        seconds: of arithmetic and memory traffic.
        flops: forward and backward.
        parameters: trained ones.
        frozen: bytes of the other weights, and of buffers.
        optimizer: bytes of the optimisers' state.
        averages: bytes of averages of the weights.
        activations: bytes of activations and of the batch, when memory is fullest.
    """

    samples: int
    seconds: float
    flops: float
    parameters: int
    frozen: int
    optimizer: int
    averages: int
    activations: int

    @classmethod
    def of(cls, run: DryRun, samples: int) -> Workload:
        """From a rehearsal for a named device; `samples` is the size of its batch.

        Raises:
            ConfigurationError: the rehearsal found errors, or no iteration is part of the run.
        """
        errors = [problem for problem in run.problems if problem.severity == "error"]
        if run.largest is None or errors:
            raise ConfigurationError(
                f"the file cannot be rehearsed: {errors[0] if errors else 'no iteration is part of the run'}"
            )
        held = run.largest.peak.by_kind
        trained = sum(network.trainable for network in run.networks)
        return cls(
            samples=samples,
            seconds=sum(cost.seconds or 0.0 for cost in run.largest.costs),
            flops=sum(cost.flops for cost in run.largest.costs),
            parameters=trained,
            frozen=max(held.get("parameters", 0) - 4 * trained, 0) + held.get("buffers", 0),
            optimizer=held.get("optimizer state", 0),
            averages=held.get("averages", 0),
            activations=held.get("activations", 0) + held.get("batch", 0),
        )


@dataclass(frozen=True)
class Row:
    """One strategy on one number of GPUs.

    Args:
        gpus: how many.
        strategy: how the weights are spread.
        samples: of the global batch.
        compute: seconds of arithmetic in an iteration.
        traffic: bytes that each GPU sends in an iteration.
        communication: seconds of it.
        memory: bytes of tensors on each GPU.
    """

    gpus: int
    strategy: Strategy
    samples: int
    compute: float
    traffic: float
    communication: float
    memory: float

    @property
    def fastest(self) -> float:
        """Seconds of an iteration where all communication that can hide behind the arithmetic does."""
        hidden = self.compute if self.strategy == "fsdp" else self.compute * BACKWARD
        return self.compute + max(self.communication - hidden, 0.0)

    @property
    def slowest(self) -> float:
        """Seconds of an iteration where none does."""
        return self.compute + self.communication


def plan(work: Workload, cluster: Cluster, gpus: int, strategy: Strategy, gather_bytes: int = 4, share: bool = False) -> Row:
    """The figures for one strategy and number of GPUs.

    Args:
        work: of one GPU.
        cluster: where.
        gpus: how many.
        strategy: how the weights are spread.
        gather_bytes: of a weight while it is sent under `fsdp`: 4, or 2 with `gather_dtype: bf16`.
        share: the batch of `work` is that of all GPUs together, which share it; else it is each GPU's.
    """
    part = 1 / gpus if share else 1.0
    gradients = _GRADIENT * work.parameters
    if strategy == "fsdp":
        sent = [gather_bytes * work.parameters] * 2 + [gradients]
    else:
        sent = [gradients] * 2
    return Row(
        gpus=gpus,
        strategy=strategy,
        samples=round(work.samples * (part * gpus)),
        compute=work.seconds * part,
        traffic=sum(sent) * (gpus - 1) / gpus,
        communication=sum(cluster.gather(each, gpus) for each in sent),
        memory=states(work, gpus, strategy) + work.frozen + work.activations * part,
    )


def states(work: Workload, gpus: int, strategy: Strategy) -> float:
    """Bytes of weights, gradients, optimiser state and averages on each GPU. Blocks that `fsdp` has together are not in it."""
    weights = gradients = 4 * work.parameters
    cut = {
        "ddp": 0,
        "zero1": work.optimizer,
        "zero2": work.optimizer + gradients,
        "fsdp": work.optimizer + gradients + weights + work.averages,
    }[strategy]
    return weights + gradients + work.optimizer + work.averages - cut * (1 - 1 / gpus)


def render(
    work: Workload,
    cluster: Cluster,
    rows: Sequence[Row],
    sample_bytes: float | None = None,
    sample_seconds: float | None = None,
) -> str:
    """The table.

    Args:
        work: of one GPU.
        cluster: where.
        rows: of the table.
        sample_bytes: read from disk for each sample, where it is known.
        sample_seconds: of a processor core for each sample, where it is known.
    """
    head = ["GPUs", "strategy", "batch", "compute", "sent by a GPU", "communication", "iteration", "samples/s", "scaling"]
    head += ["memory a GPU"] + ["read"] * (sample_bytes is not None) + ["cores"] * (sample_seconds is not None)
    alone = work.samples / work.seconds
    cells = []
    for row in rows:
        rates = [row.samples / row.slowest, row.samples / row.fastest]
        cells.append(
            [
                str(row.gpus),
                row.strategy,
                str(row.samples),
                _time(row.compute),
                size(round(row.traffic)),
                _time(row.communication),
                _range(_time(row.fastest), _time(row.slowest)),
                _range(*(f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}" for rate in rates)),
                _range(*(f"{rate / row.gpus / alone:.0%}" for rate in rates)),
                size(round(row.memory)) + (" !" if cluster.device.memory and row.memory > cluster.device.memory * 1e9 else ""),
                *([f"{size(round(rates[1] * sample_bytes))}/s"] if sample_bytes is not None else []),
                *([f"{rates[1] * sample_seconds:,.1f}"] if sample_seconds is not None else []),
            ]
        )
    reached = work.flops / work.seconds / (cluster.device.half * 1e12)
    lines = [
        f"{cluster.per_machine} x {cluster.device.title} a machine, {cluster.link:g} GB/s between them, {cluster.network:g} "
        "GB/s between machines (each direction)",
        f"a batch of {work.samples} on one: {work.parameters:,} trained parameters, {work.flops / 1e12:.2f} TFLOP, "
        f"{_time(work.seconds)} ({reached:.0%} of the peak rate in 16 bits), activations {size(work.activations)}",
        table(head, cells),
        f"  Rates are the makers', links at {LINK_EFFICIENCY:.0%}; compute is a forecast (docs/dry_run.md). Ranges: all "
        "communication that can hide behind",
        "  the arithmetic does, or none. Read and cores are for the better end. !: more than the device has.",
    ]
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _range(one: str, other: str) -> str:
    return one if one == other else f"{one} .. {other}"
