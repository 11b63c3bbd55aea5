"""Opens every file of the data sets once and says what is wrong with it."""

from dlas.data.audit.audit import Audit, AuditedSet, NamedInventory, audit
from dlas.data.audit.findings import Finding, Severity
from dlas.data.audit.report import render, write_report

__all__ = ["Audit", "AuditedSet", "Finding", "NamedInventory", "Severity", "audit", "render", "write_report"]
