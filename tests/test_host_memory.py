"""Keeping the memory of freed tensors."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from dlas.engine.host_memory import keep_freed_memory
kept = keep_freed_memory()
for _ in range(20):  # the heap grows a few times before what is free fits
    torch.ones(2**22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**22)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)

    def run() -> tuple[str, int]:
        kept, faults = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True).stdout.split()
        return kept, int(faults)

    kept, faults = run()
    if kept == "False":
        pytest.skip("another C library")
    assert faults < 100  # a tensor has 4096 pages
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    kept, faults = run()
    assert kept == "False"
    assert faults > 1000
