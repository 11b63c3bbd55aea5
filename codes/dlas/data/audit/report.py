"""The result of an audit as text, JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from dlas.data.audit.audit import Audit, AuditedSet
from dlas.data.audit.facts import FileFacts, ItemFacts
from dlas.data.audit.findings import KINDS, Finding
from dlas.errors import ConfigurationError, printable

EXAMPLES = 5


def render(audit: Audit, examples: int = EXAMPLES) -> str:
    """A section for each data set: what it holds, then each kind of fault with its count, the first files, and the fix."""
    lines: list[str] = []
    for audited in audit.sets:
        name = audited.source.name
        lines += [f"{name} ({audited.source.mode}){_counts(audited)}", *_summary(audited)]
        found: dict[str, list[Finding]] = {}
        for finding in audit.findings:
            if finding.dataset == name:
                found.setdefault(finding.kind, []).append(finding)
        for kind, findings in found.items():
            lines += _group(kind, findings, examples)
        if audited.source.inventory is not None and not found:
            lines.append("  nothing is wrong")
        lines.append("")
    files = sum(len(audited.items) for audited in audit.sets)
    lines.append(
        f"{_number(files, 'sample')} of {_number(len(audit.sets), 'data set')} read: {_number(audit.count('error'), 'error')}, "
        f"{_number(audit.count('warning'), 'warning')}, {_number(audit.count('note'), 'note')}"
    )
    return "\n".join(lines)


def write_report(audit: Audit, path: Path) -> None:
    """All findings, as CSV if the name ends so; otherwise, with the facts of every file, as JSON. Complete or not at all.

    Raises:
        ConfigurationError: the name has another ending, or the file cannot be written.
    """
    check_report_path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            if path.suffix.lower() == ".csv":
                rows = csv.writer(file)
                rows.writerow(["severity", "kind", "dataset", "file", "other_file", "detail", "fix"])
                rows.writerows(_row(finding) for finding in audit.findings)
            else:
                json.dump(_document(audit), file, indent=1, allow_nan=False)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"--report {path}: cannot be written: {error.strerror}") from error


def check_report_path(path: Path) -> None:
    """Refuses a report that could not be written, before the work is done.

    Raises:
        ConfigurationError: the ending is unknown, or there is no such folder.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise ConfigurationError(f"--report {path}: expected a name ending in .json or .csv")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ConfigurationError(f"--report {path}: {what}; give the name of a file in a folder that exists")


def _counts(audited: AuditedSet) -> str:
    if audited.source.inventory is None:
        return ""
    pairs = any("lq" in item.files and "hq" in item.files for item in audited.items)
    return f": {_number(len(audited.items), 'pair' if pairs else 'sample')}"


def _summary(audited: AuditedSet) -> list[str]:
    lines = []
    for role in ("hq", "lq", "video"):
        files = [item.files[role] for item in audited.items if role in item.files and item.files[role].error is None]
        if files:
            lines.append(f"  {role}  {_sizes(files)}; {_depths(files)}; {_formats(files)}")
    pairs = [item.pair for item in audited.items if item.pair is not None]
    measured = [pair.psnr for pair in pairs]
    if measured:
        shifts = [math.hypot(*pair.shift) for pair in pairs if pair.shift is not None]
        largest = f"; largest shift {max(shifts):.2f} pixels" if shifts else ""
        lines.append(f"  lq against hq made smaller: PSNR {min(measured):.1f} to {max(measured):.1f} dB{largest}")
    return lines


def _sizes(files: Sequence[FileFacts]) -> str:
    sides = [(file.width, file.height) for file in files]
    smallest, largest = min(sides, key=_area), max(sides, key=_area)
    if smallest == largest:
        return f"{smallest[0]} x {smallest[1]}"
    middle = f"{median(w for w, _ in sides):.0f} x {median(h for _, h in sides):.0f}"
    return f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}, median {middle}"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _depths(files: Sequence[FileFacts]) -> str:
    counts = sorted(Counter(file.bits for file in files).items())
    return f"{counts[0][0]} bits" if len(counts) == 1 else ", ".join(f"{count} at {bits} bits" for bits, count in counts)


def _formats(files: Sequence[FileFacts]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(f"{file.format} {file.mode}" for file in files).most_common())


def _group(kind: str, findings: Sequence[Finding], examples: int) -> list[str]:
    facts = KINDS[kind]
    head = f"{_number(len(findings), 'file')}: {facts.title}" if findings[0].files else facts.title
    lines = [f"  {facts.severity.upper():<7}  {head}"]
    indent = " " * 11
    for finding in findings[:examples]:
        file = f"{printable(finding.files[0])}: " if finding.files else ""
        lines.append(f"{indent}{file}{finding.detail}")
    if len(findings) > examples > 0:
        lines.append(f"{indent}and {len(findings) - examples} more")
    lines.append(f"{indent}{'so' if facts.severity == 'note' else 'fix'}: {facts.fix}")
    return lines


def _row(finding: Finding) -> list[str]:
    files = [printable(path) for path in finding.files]
    first, others = "".join(files[:1]), " ".join(files[1:])
    return [finding.severity, finding.kind, finding.dataset, first, others, finding.detail, KINDS[finding.kind].fix]


def _document(audit: Audit) -> dict[str, Any]:
    return {
        "errors": audit.count("error"),
        "warnings": audit.count("warning"),
        "notes": audit.count("note"),
        "kinds": {kind: asdict(facts) for kind, facts in KINDS.items()},
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "dataset": finding.dataset,
                "files": [str(path) for path in finding.files],
                "detail": finding.detail,
            }
            for finding in audit.findings
        ],
        "datasets": {
            audited.source.name: {"mode": audited.source.mode, "samples": [_sample(item) for item in audited.items]}
            for audited in audit.sets
        },
    }


def _sample(item: ItemFacts) -> dict[str, Any]:
    entry: dict[str, Any] = {role: _file(file) for role, file in item.files.items()}
    if item.pair is not None:
        psnr = item.pair.psnr if math.isfinite(item.pair.psnr) else None
        entry["pair"] = {"psnr": psnr, "correlation": item.pair.correlation, "shift": item.pair.shift}
    return entry


def _file(file: FileFacts) -> dict[str, Any]:
    if file.error is not None:
        return {"path": str(file.path), "error": file.error}
    entry = {**asdict(file), "path": str(file.path)}
    del entry["error"], entry["likeness"]
    if file.likeness is not None:
        entry["pixels"] = file.likeness.pixels.hex()
    return entry


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
