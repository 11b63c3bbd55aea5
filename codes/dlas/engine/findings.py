"""What a look at a step that went wrong has found: numbers about tensors, faults, and the report made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dlas.observe.console import compact


@dataclass(frozen=True)
class Contents:
    """What a tensor holds.

    Args:
        total: number of values.
        nan: how many are no number.
        inf: how many are infinite.
        largest: largest magnitude of the finite ones.
        rows: samples with values that are not finite, where the first dimension counts the samples of the batch.
    """

    total: int
    nan: int
    inf: int
    largest: float
    rows: tuple[int, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether all values are."""
        return self.nan == 0 and self.inf == 0

    def text(self) -> str:
        """For instance `64 of 8192 values are nan`."""
        if self.finite:
            return f"finite, up to {compact(self.largest)}"
        words = [f"{count:,} {word}" for count, word in ((self.nan, "nan"), (self.inf, "inf")) if count]
        if len(words) == 1 and max(self.nan, self.inf) == self.total:
            word = words[0].split()[1]
            return f"{word} in all {self.total:,} values" if self.total > 1 else word
        return f"{' and '.join(words)} of {self.total:,} values"


def contents(tensor: Tensor, samples: int | None = None) -> Contents:
    """Counts what is not finite. Waits for the device.

    Args:
        tensor: of any type; whole numbers are finite.
        samples: size of the batch, to tell which samples are concerned.
    """
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.coalesce().values() if values.layout is torch.sparse_coo else values.to_dense()
    if values.numel() == 0 or not (values.is_floating_point() or values.is_complex()):
        return Contents(values.numel(), 0, 0, 0.0)
    finite = values.isfinite()
    if bool(finite.all()):
        return Contents(values.numel(), 0, 0, float(values.abs().amax()))
    nan = int(values.isnan().sum())
    largest = float(torch.where(finite, values.abs(), 0).amax())
    rows: tuple[int, ...] = ()
    if samples is not None and tensor.dim() > 0 and tensor.shape[0] == samples:
        rows = tuple((~finite).reshape(samples, -1).any(1).nonzero().flatten().tolist())
    return Contents(values.numel(), nan, int((~finite).sum()) - nan, largest, rows)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a nested value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def join(found: list[Contents]) -> Contents:
    """Several tensors as one."""
    rows = sorted({row for each in found for row in each.rows})
    return Contents(
        sum(c.total for c in found),
        sum(c.nan for c in found),
        sum(c.inf for c in found),
        max((c.largest for c in found), default=0.0),
        tuple(rows),
    )


@dataclass(frozen=True)
class Sample:
    """One sample of the batch: its place in the batch and in the run's endless order, and what the data set calls it."""

    index: int
    position: int
    names: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """For instance `sample 2 (position 30): path toy/3.png`."""
        names = ", ".join(f"{key} {value}" for key, value in self.names.items())
        return f"sample {self.index} (position {self.position}){': ' if names else ''}{names}"


Kind = Literal["batch", "state", "layer", "loss", "gradient", "sum", "error"]


@dataclass
class Fault:
    """One place where values stop being finite.

    Args:
        kind: what it is: an entry of the batch, an entry that an injector wrote, a layer, a loss, the gradient of an operation,
            the sum of gradients, or an error that was raised.
        name: its name.
        text: what was found there.
        part: micro-batch, from 0.
        source: everything it read was finite, so it begins here.
        samples: the samples concerned, where that can be told.
    """

    kind: Kind
    name: str
    text: str
    part: int = 0
    source: bool = True
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Diagnosis:
    """What running a step again has shown.

    Args:
        step: its name.
        iteration: completed iterations when it ran.
        device: where it ran.
        precision: fp32, bf16 or fp16.
        parts: number of samples of each micro-batch.
        losses: value of each loss in each micro-batch, before its weight.
        faults: the cause first, then what follows from it.
        weights: parameters that are not finite, and what they hold.
        buffers: likewise buffers; the pass that failed may have written them.
        largest: the largest activations and gradients, by the name of the layer or parameter.
        loss_scale: factor on the loss under fp16.
        notes: what else should be known.
    """

    step: str
    iteration: int
    device: str
    precision: str
    parts: list[int]
    losses: dict[str, list[float]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    loss_scale: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def reproduced(self) -> bool:
        """Whether a loss or a gradient was not finite, or the step failed."""
        return any(not math.isfinite(value) for values in self.losses.values() for value in values) or any(
            fault.kind in ("loss", "gradient", "sum", "error") for fault in self.faults
        )

    @property
    def cause(self) -> Fault | None:
        """Where it begins."""
        return next((fault for fault in self.faults if fault.source), None) if self.reproduced else None

    def text(self) -> str:
        """The report, some lines long."""
        where = f"step '{self.step}', iteration {self.iteration + 1} ({self.precision}, {self.device})"
        lines = [f"{where}: {'not finite' if self.reproduced else 'every loss and gradient is finite when it runs again'}"]
        cause = self.cause
        if cause is not None and cause.kind == "error":
            lines[0] = f"{where}: failed"
        if cause is not None:
            lines.append(_line("cause", self._fault(cause)))
            lines += [_line("", words) for words in self._samples(cause)]
        others = [fault for fault in self.faults if fault is not cause]
        lines += [_line("also" if fault.source else "then", self._fault(fault)) for fault in others[:6]]
        if len(others) > 6:
            lines.append(_line("", f"and {len(others) - 6} more"))
        if self.losses:
            lines.append(_line("losses", ", ".join(f"{name} {self._values(name)}" for name in self.losses)))
        for label, found in (("weights", self.weights), ("buffers", self.buffers)):
            named = [f"{name} ({words})" for name, words in found.items()]
            if named:
                more = f", and {len(named) - 4} more" if len(named) > 4 else ""
                lines.append(_line(label, f"not finite: {', '.join(named[:4])}{more}"))
        if self.largest:
            lines.append(_line("largest", ", ".join(f"{name} {compact(value)}" for name, value in self.largest.items())))
        if self.loss_scale is not None:
            lines.append(_line("loss scale", compact(self.loss_scale)))
        return "\n".join([*lines, *(_line("note", note) for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """As JSON values; numbers that are not finite are texts (`nan`, `inf`), for JSON has none."""
        result: dict[str, Any] = _plain({**asdict(self), "reproduced": self.reproduced})
        return result

    def _fault(self, fault: Fault) -> str:
        place = f" [micro-batch {fault.part + 1} of {len(self.parts)}]" if len(self.parts) > 1 else ""
        return f"{fault.name}: {fault.text}{place}"

    def _samples(self, fault: Fault) -> list[str]:
        count = len(fault.samples)
        if count > 1 and count == self.parts[fault.part]:
            return [f"in all {count} samples of the {'micro-batch' if len(self.parts) > 1 else 'batch'}"]
        more = [f"and {count - 8} more samples"] if count > 8 else []
        return [sample.text() for sample in fault.samples[:8]] + more

    def _values(self, name: str) -> str:
        return " | ".join(compact(value) if math.isfinite(value) else str(value) for value in self.losses[name])


def _line(label: str, text: str) -> str:
    return f"  {label:<11}{text}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
