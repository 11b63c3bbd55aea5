"""Runs benchmarks by name, one after another, and describes the machine.

    python benchmarks/run.py [names] [--json] [--list]

Each case is a script of this folder with the options given here; it interleaves what it compares and prints JSON lines.
Without names all of them run. `--json` prints one object {"machine": ..., "cases": [...]}; otherwise lines come as they are
made. A case that fails is named at the end, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import describe_machine

FOLDER = Path(__file__).resolve().parent
CASES = {
    "rrdb_step": ["rrdb_step.py"],
    "rrdb_memory": ["rrdb_memory.py"],
    "start_up": ["start_up.py"],
    "step_overhead": ["step_overhead.py"],
    "diffusion_overhead": ["diffusion_overhead.py"],
    "unet_step": ["unet_step.py"],
    "srflow": ["srflow.py", "--rounds", "7"],
    "flow_memory": ["flow_memory.py"],
    "degradations": ["degradations.py"],
    "checkpoint_cost": ["checkpoint_cost.py"],
    "check_time": ["check_time.py"],
}
"""By name: a script and its options. Scripts that need data or another program's package are run by hand: see README.md."""


def run(name: str, echo: bool) -> tuple[list[dict[str, object]], bool]:
    """The JSON lines that a case prints, and whether it ended well."""
    script, *options = CASES[name]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, str(FOLDER / script), *options]
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
    options = parser.parse_args()
    if options.list:
        print("\n".join(CASES))
        return 0
    if unknown := sorted(set(options.names) - set(CASES)):
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if not options.json:
        print(json.dumps({"machine": describe_machine()}), flush=True)
    results, failed = [], []
    for name in options.names or CASES:
        lines, well = run(name, not options.json)
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
