"""Small training steps of the working tree against those of another commit: did a change make them slower?

    python benchmarks/guard.py [--against HEAD~1] [--rounds 15] [--limit 1.05] [cases]

The other commit is checked out into a temporary worktree. For each case a process of either version stays alive and they step
in turn, so that other load on the machine hits both alike. Prints a JSON line for each case: quartiles of the paired ratios of
processor time, this / the other. Exit status 1 if a lower quartile is above the limit: then it is slower for all but chance.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import Worker, quartiles

HERE = Path(__file__).resolve().parent
CASES = {  # network, side, scale, precision, layout, steps in a round
    "loop": ("{which_model_G: bench_conv}", 8, 1, "fp32", "contiguous", 200),
    "rrdb_fp32": ("{which_model_G: RRDBNet, nf: 16, nb: 1, gc: 16}", 24, 4, "fp32", "contiguous", 6),
    "rrdb_bf16": ("{which_model_G: RRDBNet, nf: 16, nb: 1, gc: 16}", 24, 4, "bf16", "channels_last", 6),
}


def work(case: str, root: Path) -> None:
    """What a worker does with the code below a folder: see `rrdb_step.work`."""
    sys.path[:0] = [str(root / "codes"), str(root / "benchmarks")]
    import torch
    from step_overhead import trainer_loop  # the other version's own: it fits its trainer

    import dlas

    assert Path(dlas.__file__).is_relative_to(root), f"{dlas.__file__} was to be measured from {root}"
    logging.getLogger("dlas").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        *arguments, _ = CASES[case]
        run = trainer_loop(folder, *arguments)
        for line in sys.stdin:
            start = time.process_time()
            run(int(line))
            print(1e3 * (time.process_time() - start) / int(line), flush=True)


def compare(case: str, roots: tuple[Path, Path], rounds: int) -> list[float]:
    """Quartiles of the ratios, first / second."""
    steps = CASES[case][-1]
    workers = [Worker([sys.executable, __file__, "--work", str(root), case]) for root in roots]
    for worker in workers:
        worker.ask(steps)
    ratios = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        times = {which: workers[which].ask(steps) for which in order}
        ratios.append(times[0] / times[1])
    for worker in workers:
        worker.close()
    return quartiles(ratios)


def main() -> int:
    """Compares all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--against", default="HEAD~1", help="a commit")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.05)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted(set(options.cases) - set(CASES)):
        parser.error(f"there is no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    if options.work:
        work(options.cases[0], options.work)
        return 0
    root, slower = HERE.parent, False
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder).resolve() / "other"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(other), options.against], cwd=root, check=True)
        try:
            for case in options.cases or CASES:
                ratio = compare(case, (root, other), options.rounds)
                slower |= ratio[0] > options.limit
                print(
                    json.dumps({"case": case, "ratio": ratio, "against": options.against, "rounds": options.rounds}), flush=True
                )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=root, check=True)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
