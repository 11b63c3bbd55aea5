"""A rehearsal's findings as text."""

from __future__ import annotations

from collections.abc import Sequence

from dlas.engine.dryrun.devices import BANDWIDTH_EFFICIENCY, LATENCY, Device
from dlas.engine.dryrun.rehearsal import DryRun, Iteration, StepCost


def render(run: DryRun) -> str:
    """Tables of networks, state and cost; problems are not among them."""
    blocks = [_networks(run)]
    for number, iteration in enumerate(run.iterations):
        blocks.append(_iteration(run, iteration, run.iterations[number - 1] if number else None))
    if run.largest is not None:
        blocks.append(_memory(run, run.largest))
    return "\n\n".join(blocks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under headings; the first one to the left, figures (cells that begin with a digit) to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    figures = [all(row[column][:1].isdigit() or row[column] in ("", "-") for row in rows) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, figures, strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _networks(run: DryRun) -> str:
    rows = [(n.name, n.which_model, f"{n.trainable:,}", f"{n.frozen:,}") for n in run.networks]
    return table(("network", "architecture", "trained parameters", "frozen parameters"), rows)


def _iteration(run: DryRun, iteration: Iteration, before: Iteration | None) -> str:
    title = f"iteration {iteration.number}" + ("" if iteration.in_run else " (after the end of the run)")
    if iteration.switched:
        title += f", switched on: {', '.join(iteration.switched)}"
    known = before.state if before else []
    entries = [entry for entry in iteration.state if entry not in known]
    share = f" (micro-batch of {run.samples} samples, 1 of {run.parts})" if run.parts > 1 else ""
    rows = [(entry.key, entry.value, entry.writer) for entry in entries]
    lines = [title]
    if rows:
        lines.append(table((f"state{', what is new' if known else ''}", f"type and shape{share}", "written by"), rows))
    costs = [
        (cost.step or "rest", f"{cost.flops / 1e9:,.2f}", _time(cost.seconds))
        for cost in sorted(iteration.costs, key=lambda c: not c.step)
        if _counts(cost)
    ]
    lines.append(table(("step", "GFLOP", "time"), costs) if run.device else table(("step", "GFLOP"), [c[:2] for c in costs]))
    total = sum(cost.seconds or 0.0 for cost in iteration.costs)
    lines.append(f"  peak memory {size(iteration.peak.total)}" + (f", time {_time(total)}" if run.device else ""))
    return "\n".join(lines)


def _counts(cost: StepCost) -> bool:
    return bool(cost.flops or cost.seconds)


def _memory(run: DryRun, iteration: Iteration) -> str:
    target = run.device.title if run.device else "a GPU" if run.cuda else "a CPU"
    peak = f"peak memory {size(iteration.peak.total)} in iteration {iteration.number}"
    parts = sorted(iteration.peak.by_kind.items(), key=lambda item: -item[1])
    lines = [
        f"forecast for {target}, {run.precision}: {peak}",
        table(("held for", "memory"), [(kind, size(held)) for kind, held in parts if held]),
        "  Tensors only: add what the libraries take for themselves (docs/dry_run.md).",
    ]
    if run.automatic:
        lines.append(_size_found(run))
    if run.device is not None:
        lines += _assumptions(run.device)
    return "\n".join(lines)


def _size_found(run: DryRun) -> str:
    head = f"  train.micro_batch_size: auto: {run.samples}"
    if run.device is None or run.device.memory is None:
        return f"{head}, the whole batch, if it fits; with '--device NAME', the size that is expected there"
    figures = ", ".join(f"{samples}: {size(peak)}" for samples, peak in run.tried.items())
    return f"{head} {'is expected to fit' if run.fits else 'does not fit either'} (memory by size: {figures})"


def _assumptions(device: Device) -> list[str]:
    lines = [] if device.memory is None else [f"  The device has {device.memory:.0f} GB."]
    return [
        *lines,
        "  Times are rough estimates (expect a factor of 2): the sum over operations, one after the other, of the longest of",
        f"  FLOP / ({device.efficiency:.0%} of the peak rate), bytes moved / ({BANDWIDTH_EFFICIENCY:.0%} of "
        f"{device.bandwidth:,.0f} GB/s) and {LATENCY[device.kind] * 1e6:.0f} us.",
        f"  Peak rates in TFLOP/s: float32 {device.fp32:.3g}, with TensorFloat-32 {device.tf32:.3g}, half {device.half:.3g}.",
    ]


def size(count: int) -> str:
    """Bytes in words, in powers of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
