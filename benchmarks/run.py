"""Runs benchmarks by name, one after another, and describes the machine.

    python benchmarks/run.py [names] [--json] [--list] [--rounds N] [--peers FOLDER] [--peer-python PYTHON]

Each case is a script of this folder with the options given here; it interleaves what it compares and prints JSON lines.
Without names all of them run. `--json` prints one object {"machine": ..., "cases": [...]}; otherwise lines come as they are
made. A case that fails is named at the end, and the exit status is 1. Other programs are measured where they are told of (see
peers/README.md); without them every case still runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import describe_machine

FOLDER = Path(__file__).resolve().parent
CASES = {
    "rrdb_step": ["rrdb_step.py"],
    "rrdb_memory": ["rrdb_memory.py"],
    "rrdb_memory_96": ["rrdb_memory.py", "--side", "96", "--rounds", "3", "--rivals", "basicsr"],
    "gemm_share": ["gemm_share.py"],
    "start_up": ["start_up.py"],
    "step_overhead": ["step_overhead.py"],
    "diffusion_overhead": ["diffusion_overhead.py"],
    "unet_step": ["unet_step.py"],
    "srflow": ["srflow.py", "--rounds", "7"],
    "flow_memory": ["flow_memory.py"],
    "loader_cost": ["loader_cost.py"],
    "degradations": ["degradations.py"],
    "validation_cost": ["validation_cost.py"],
    "checkpoint_cost": ["checkpoint_cost.py"],
    "check_time": ["check_time.py"],
}
"""By name: a script and its options. Scripts that need data of their own are run by hand: see README.md."""
TOLD_OF = {
    "--rounds": tuple(script for script, *_ in CASES.values() if script != "check_time.py"),
    "--peers": ("rrdb_step.py", "rrdb_memory.py", "unet_step.py"),
    "--peer-python": ("loader_cost.py", "degradations.py"),
}
"""Options that are handed on, and to which scripts."""


def run(name: str, echo: bool, given: Mapping[str, str | None] | None = None) -> tuple[list[dict[str, object]], bool]:
    """The JSON lines that a case prints, and whether it ended well; `given`: values of the options that are handed on."""
    script, *options = CASES[name]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    handed = [
        word for option, value in (given or {}).items() if value and script in TOLD_OF[option] for word in (option, value)
    ]
    command = [sys.executable, str(FOLDER / script), *options, *handed]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                lines.append(json.loads(line))
            if echo:
                print(line, end="", flush=True)
    return lines, process.returncode == 0


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(CASES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--rounds", metavar="N", help="in each case, at least 2, in place of its own number")
    parser.add_argument("--peers", metavar="FOLDER", help="with clones of other programs")
    parser.add_argument("--peer-python", metavar="PYTHON", help="interpreter of an environment with basicsr")
    options = parser.parse_args()
    if options.list:
        print("\n".join(CASES))
        return 0
    if unknown := sorted(set(options.names) - set(CASES)):
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if not options.json:
        print(json.dumps({"machine": describe_machine()}), flush=True)
    given = {"--rounds": options.rounds, "--peers": options.peers, "--peer-python": options.peer_python}
    results, failed = [], []
    for name in options.names or CASES:
        lines, well = run(name, not options.json, given)
        results.append({"name": name, "results": lines})
        if not well:
            failed.append(name)
    if options.json:
        print(json.dumps({"machine": describe_machine(), "cases": results}, indent=1))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
