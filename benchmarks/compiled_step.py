"""A training step of RRDBNet (32 features, 4 blocks, batch of 4, 32 -> 128 pixels, L1, Adam), compiled against not compiled.

    python benchmarks/compiled_step.py [--rounds 15] [--setting fp32 channels_last bf16]

Both are the trainer; they run in turn, in processes of their own, once all is compiled. Prints a JSON line for each setting:
quartiles of the rounds' paired ratios of processor time, eager / compiled (more than 1: compiled is faster), and how long
the first three steps of each have taken, compiling included; torch keeps what it has compiled, so that is less the next time.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired import Worker, describe_machine, in_turn, quartiles

SETTINGS = {"fp32": ("fp32", "contiguous"), "channels_last": ("fp32", "channels_last"), "bf16": ("bf16", "channels_last")}
CASES = {"eager": "false", "compiled": "true"}


def work(case: str, setting: str) -> None:
    """What a worker does: for each line it is sent, that many steps; it answers with milliseconds a step."""
    import torch
    from step_overhead import OPTIONS, RRDB, trainer_of

    logging.getLogger("dlas").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    precision, layout = SETTINGS[setting]
    options = OPTIONS.format(scale=4, precision=precision, layout=layout, size=32, network=RRDB)
    with tempfile.TemporaryDirectory() as folder:
        run = trainer_of(folder, f"{options}\ncompile: {CASES[case]}\n")
        for line in sys.stdin:
            start = time.process_time()
            run(int(line))
            print(1e3 * (time.process_time() - start) / int(line), flush=True)


def main() -> None:
    """Runs both in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    for setting in options.setting:
        workers, start = {}, {}
        for case in CASES:
            workers[case] = Worker([sys.executable, __file__, "--work", case, setting])
            begun = time.perf_counter()
            workers[case].ask(3)
            start[f"{case}_start_s"] = round(time.perf_counter() - begun, 1)
        times = in_turn(workers, options.rounds, 2)
        for worker in workers.values():
            worker.close()
        ratios = [eager / compiled for eager, compiled in zip(*times.values(), strict=True)]
        figures = {"ratio": quartiles(ratios), "compiled_ms": round(statistics.median(times["compiled"]), 1), **start}
        figures |= {"rounds": options.rounds, **describe_machine()}
        print(json.dumps({"case": f"rrdb step: eager / compiled, {setting}", **figures}), flush=True)


if __name__ == "__main__":
    main()
