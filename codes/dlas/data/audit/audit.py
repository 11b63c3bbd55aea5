"""Every sample of every data set is opened once; then images are compared within a set and between training and the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dlas.data.audit.facts import FileFacts, ItemFacts, examine
from dlas.data.audit.findings import KINDS, Finding, Severity
from dlas.data.audit.judge import judge_leaks, judge_set
from dlas.data.inventory import Inventory, Item
from dlas.data.pool import DIED, map_in_processes

TRAINING = "train"


@dataclass
class NamedInventory:
    """A data set of the YAML file.

    Args:
        name: its key under `datasets`.
        mode: its mode.
        inventory: its files; None if it does not list them, or cannot.
        fault: why it cannot.
    """

    name: str
    mode: str
    inventory: Inventory | None
    fault: str | None = None


@dataclass
class AuditedSet:
    """What was measured of one data set."""

    source: NamedInventory
    items: list[ItemFacts] = field(default_factory=list)


@dataclass
class Audit:
    """The result: what was measured, and what is wrong."""

    sets: list[AuditedSet]
    findings: list[Finding]

    def count(self, severity: Severity) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def audit(named: Sequence[NamedInventory], workers: int = 0, advance: Callable[[], object] = lambda: None) -> Audit:
    """Audits data sets.

    Args:
        named: the data sets; that called `train` is compared with each of the others.
        workers: processes that read; 0 reads in this one. The result does not depend on it.
        advance: called after each sample.

    Returns:
        Findings in the order of the sets, of `KINDS`, and of the files.
    """
    sets = [AuditedSet(each) for each in named]
    for audited in sets:
        inventory = audited.source.inventory
        if inventory is not None:
            read = partial(examine, scale=inventory.scale)
            for facts in map_in_processes(read, inventory.items, workers, _died):
                audited.items.append(facts)
                advance()
    training = next((audited for audited in sets if audited.source.name == TRAINING), None)
    findings: list[Finding] = []
    for audited in sets:
        findings += sorted(_judge(audited, training), key=lambda finding: _ORDER[finding.kind])
    return Audit(sets, findings)


_ORDER = {kind: place for place, kind in enumerate(KINDS)}


def _judge(audited: AuditedSet, training: AuditedSet | None) -> list[Finding]:
    name, inventory = audited.source.name, audited.source.inventory
    if audited.source.fault is not None:
        return [Finding("unusable", name, (), audited.source.fault)]
    if inventory is None:
        return [Finding("not_audited", name, (), f"mode {audited.source.mode}")]
    findings = list(judge_set(name, inventory, audited.items))
    if training is not None and training is not audited:
        findings += judge_leaks(TRAINING, training.items, name, audited.items)
    return findings


def _died(item: Item) -> ItemFacts:
    return ItemFacts({role: FileFacts(path, DIED) for role, path in item.files.items()})
