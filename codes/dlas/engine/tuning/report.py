"""What a search found, as text and as a file."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import yaml

from dlas.engine.dryrun.report import size, table
from dlas.engine.tuning.search import Row, Stage, Tuned
from dlas.engine.tuning.settings import Setting

_TITLES = {
    "numeric": "micro-batch, precision and memory format",
    "compile": "networks compiled (torch.compile)",
    "workers": "workers that read ahead",
}


def render(found: Tuned, batch_size: int) -> str:
    """Tables of all stages, the memory and the choice."""
    return "\n\n".join([_memory(found, batch_size), *(_stage(each, found.by_trial) for each in found.stages), _choice(found)])


def _memory(found: Tuned, batch_size: int) -> str:
    limit = f" of {size(found.memory)}" if found.memory else ""
    by = "by trial" if found.by_trial else "by the forecast"
    more = "" if found.bounded else ", and more: larger ones were not looked at"
    return (
        f"Measured at iteration {found.iteration}, batches of {batch_size} samples, which stay what they are.\n"
        f"Largest micro-batch that fits with the file's precision and memory format{limit} ({by}): {found.largest}{more}."
    )


def _stage(stage: Stage, by_trial: bool) -> str:
    rows = [_cells(row, stage) for row in sorted(stage.rows, key=_order)]
    memory = "memory" if by_trial else "memory (forecast)"
    head = (
        "",
        "micro-batch",
        "precision",
        "memory format",
        "compiled",
        "workers",
        "samples/s",
        "times =",
        "interval",
        memory,
        "rounds",
    )
    ratios = [row.against for row in stage.rows if row.against is not None]
    most = max(ratios, key=lambda ratio: ratio.rounds)
    return (
        f"{_TITLES[stage.title]}\n{table(head, rows)}\n"
        "  > chosen, * no other is better in both median speed and memory, = what the others are compared with.\n"
        f"  samples/s: median; times =: median ratio of the rounds that both were measured in; interval: where the true\n"
        f"  median lies with a probability of {most.coverage:.0%} ({most.rounds} rounds; less with fewer)."
        f"{_compiling(stage)}"
    )


def _compiling(stage: Stage) -> str:
    """What compiling takes; it is chosen where the run is faster for certain, and over earlier by more than that."""
    lines = []
    for row in stage.rows if stage.title == "compile" else []:
        if row.failure:
            lines.append(f"\n  {_mode(row.setting)}: does not compile: {row.failure}")
        elif row.setting.compiled and row.speeds:
            lines.append(
                f"\n  {_mode(row.setting)}: compiling takes {row.start:.1f} s at the start of a run (the longest of the rounds;"
                "\n  torch keeps what it has compiled). It is chosen only if it is faster for certain and saves more than that."
            )
    return "".join(lines)


def _mode(setting: Setting) -> str:
    return setting.mode if setting.compiled else "no"


def _order(row: Row) -> tuple[float, float]:
    return -len(row.speeds), -row.against.median if row.against is not None else 0.0


def _cells(row: Row, stage: Stage) -> list[str]:
    marks = (
        (">" if row is stage.chosen else "") + ("*" if row in stage.pareto else "") + ("=" if row is stage.reference else "")
    )
    setting, memory = row.setting, size(row.memory) if row.memory is not None else "-"
    cells = [marks, f"{setting.micro_batch}", setting.precision, setting.memory_format]
    cells += [_mode(setting), f"{setting.n_workers}"]
    if row.against is None:
        return [*cells, "-" if row.fits else "fails" if row.failure else "does not fit", "-", "-", memory, f"{len(row.speeds)}"]
    interval = f"{row.against.low:.2f} .. {row.against.high:.2f}"
    speed = f"{statistics.median(row.speeds.values()):.4g}"
    return [*cells, speed, f"{row.against.median:.2f}", interval, memory, f"{len(row.speeds)}"]


def _choice(found: Tuned) -> str:
    first, reference, chosen = found.stages[0].rows[0], found.stages[0].reference, found.stages[0].chosen
    setting = found.setting
    words = f"{setting.precision}, {setting.memory_format}, micro-batches of {setting.micro_batch}, {setting.n_workers} workers"
    words += f", compiled ({setting.mode})" if setting.compiled else ""
    if setting == found.own:
        return f"Chosen: what the file says ({words})."
    if first is not reference:
        return f"Chosen: {words}. What the file says does not fit."
    than = "what the file says" if first.setting == found.own else "what the file says, neither of them compiled"
    return f"Chosen: {words}{_gain(chosen, than)}{_gain_of_compiling(found)}."


def _gain(row: Row, than: str) -> str:
    ratio = row.against
    return f", {ratio.median:.2f} times as fast as {than}" if ratio is not None and ratio.certain else ""


def _gain_of_compiling(found: Tuned) -> str:
    compiled = next((each.chosen for each in found.stages if each.title == "compile"), None)
    return _gain(compiled, "not compiled") if compiled is not None and compiled.setting.compiled else ""


def write_include(path: Path, option_file: Path, found: Tuned) -> None:
    """Writes a file that includes the option file and overrides what was tuned.

    Raises:
        OSError: it cannot be written.
    """
    above = os.path.relpath(option_file.resolve(), path.resolve().parent)
    entries = {"include": Path(above).as_posix(), **found.setting.entries()}
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    path.write_text(
        f"# By `dlas tune -opt {option_file.name}`: the fastest settings that were measured.\n{text}", encoding="utf-8"
    )
