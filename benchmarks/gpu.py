"""Training steps at full size on a data-centre GPU: speed, memory, and what limits them.

    python benchmarks/gpu.py [cases] [--seconds 10] [--peers FOLDER] [--markdown FILE]
    python benchmarks/gpu.py --tiny                # small sizes, two settings, also on a CPU: that it works, no figures

Each case is trained by the trainer's own iterations (health checks and averages included) on data in pinned memory: eager in
five settings, from plain float32 to bf16 in channels_last, and compiled (`compile: true`) in the fastest of them. BasicSR's
network runs in the step as BasicSR makes it, where its package or a clone (`--peers`) is there. Prints a JSON line for each
and a Markdown table in the end:

    samples_per_second, step_ms    over at least `--seconds`, behind a warm-up
    tflops, mfu                    of products, convolutions and attention; and over what a large product reaches here
    peak_gib                       of the allocator, on a CPU of the process
    products, other, idle          shares of the step: kernels of products and convolutions, by a profile of three iterations;
                                   all other kernels; no kernel at all
    limit                          launch: idle over a quarter of the time; else compute: products are over half of what is
                                   busy; else bandwidth
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from gpu_cases import CASES, text_of
from kernel_shares import profiled, wait_for
from paired import describe_machine
from peers.networks import available, rrdbnet
from torch import nn

from dlas.config import load
from dlas.engine.device import choose_device, peak_memory_mb
from dlas.engine.flops import peak_rate
from dlas.engine.out_of_memory import is_out_of_memory, release_memory
from dlas.engine.precision import DTYPES
from dlas.engine.trainer import Trainer

SETTINGS = {
    "fp32": ("precision=fp32", "tf32=false", "memory_format=contiguous"),
    "tf32": ("precision=fp32", "tf32=true", "memory_format=contiguous"),
    "tf32 channels_last": ("precision=fp32", "tf32=true", "memory_format=channels_last"),
    "bf16": ("precision=bf16", "tf32=true", "memory_format=contiguous"),
    "bf16 channels_last": ("precision=bf16", "tf32=true", "memory_format=channels_last"),
}
_COLUMNS = ("case", "setting", "samples_per_second", "step_ms", "mfu", "peak_gib", "products", "other", "idle", "limit")


def measured(iterate: Callable[[], object], device: torch.device, batch: int, seconds: float, warm: int) -> dict[str, Any]:
    """Speed, memory and limit of iterations."""
    for _ in range(warm):
        iterate()
    wait_for(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < seconds:
        for _ in range(2 if seconds < 1 else 10):
            iterate()
            count += 1
        wait_for(device)
    taken = (time.perf_counter() - start) / count
    figures = {"samples_per_second": round(batch / taken, 2), "step_ms": round(1e3 * taken, 2)}
    figures["peak_gib"] = round(peak_memory_mb(device) / 2**10, 2)
    shares = profiled(iterate, device, taken)
    shown = {name: round(getattr(shares, name), 3) for name in ("products", "other", "idle")}
    return figures | shown | {"limit": shares.limit}


def ours(
    name: str, setting: str, compiled: bool, device: torch.device, options: argparse.Namespace, flops: dict[str, float]
) -> dict[str, Any]:
    """A case in a setting. Arithmetic of a sample is counted in eager mode and remembered in `flops`."""
    case = CASES[name]
    settings = [*SETTINGS[setting], *(["compile=true"] if compiled else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "options.yml"
        path.write_text(text_of(case))
        overrides = [f"path.experiments={folder}", f"device={device}", *(case.tiny if options.tiny else ()), *settings]
        trainer = Trainer(load(path, overrides))
        with trainer._loader() as loader:
            batches = [next(loader) for _ in range(2)]
        turn = iter(range(10**9))
        if trainer.work is not None:
            trainer.iterate(dict(batches[0]))
            flops[name] = trainer.work.take() / trainer.batch_size

        def iterate() -> None:
            trainer.iterate(dict(batches[next(turn) % 2]))

        figures = measured(iterate, device, trainer.batch_size, options.seconds, 2 if options.tiny else 10)
        if name in flops:
            rate = flops[name] * trainer.batch_size / figures["step_ms"] / 1e9
            peak = peak_rate(device, DTYPES[trainer.precision.name], trainer.config.tf32)
            figures |= {"tflops": round(rate, 3), "mfu": round(rate / peak, 3)}
        what = "tiny" if options.tiny else case.what
        return {"case": name, "what": what, "setting": setting + " compiled" * compiled, **figures}


def basicsr(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """BasicSR's step of the PSNR stage: float32 as torch sets it, Adam, an average weight by weight, the loss read at once."""
    batch, side, nf, nb = (2, 16, 8, 1) if options.tiny else (16, 48, 64, 23)
    network = rrdbnet("basicsr", options.peers, nf, nb).to(device)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, True
    torch.set_float32_matmul_precision("highest")
    average = [weight.detach().clone() for weight in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.9, 0.99))
    lq, hq = torch.rand(batch, 3, side, side), torch.rand(batch, 3, 4 * side, 4 * side)

    def iterate() -> None:
        small, large = lq.to(device), hq.to(device)
        optimizer.zero_grad()
        loss = nn.functional.l1_loss(network(small), large)
        loss.backward()
        optimizer.step()
        loss.item()
        for mean, weight in zip(average, network.parameters(), strict=True):
            mean.mul_(0.999).add_(weight.data, alpha=0.001)

    figures = measured(iterate, device, batch, options.seconds, 2 if options.tiny else 10)
    return {"case": "rrdb_psnr", "what": "BasicSR's network and step", "setting": "BasicSR", **figures}


def attempted(work: Callable[[], dict[str, Any]], device: torch.device, **about: str) -> dict[str, Any]:
    """What the work gives, or that memory did not suffice."""
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    finally:
        torch.compiler.reset()
    release_memory(device)
    return {**about, "limit": "out of memory"}


def table(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """In Markdown, under a line about the machine."""
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(row.get(key, "")) for key in _COLUMNS) + " |" for row in rows)]) + "\n"


def main() -> None:
    """Runs the cases one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=", ".join(CASES))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="eager ones")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="by default but with --tiny")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--peers", type=Path, help="folder with a clone of BasicSR (see peers/README.md)")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    options = parser.parse_args()
    unknown = set(options.cases) - CASES.keys()
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    if options.tiny:
        options.seconds = 0.0
    settings = options.settings or (["fp32", "bf16 channels_last"] if options.tiny else list(SETTINGS))
    compiles = not options.tiny if options.compile is None else options.compile
    logging.getLogger("dlas").setLevel(logging.ERROR)
    device = choose_device(options.device)
    machine: dict[str, Any] = {"date": datetime.date.today().isoformat(), **describe_machine()}
    if device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        machine |= {"cudnn": torch.backends.cudnn.version()}
    rows: list[dict[str, Any]] = []

    flops: dict[str, float] = {}

    def run(name: str, setting: str, work: Callable[[], dict[str, Any]]) -> float:
        """Shows a row; its speed."""
        row = attempted(work, device, case=name, setting=setting)
        release_memory(device)
        rows.append(row)
        print(json.dumps({**row, **machine}), flush=True)
        return float(row.get("samples_per_second", 0.0))

    for name in options.cases or CASES:
        speeds = {each: run(name, each, partial(ours, name, each, False, device, options, flops)) for each in settings}
        if compiles:
            fastest = max(speeds, key=lambda each: speeds[each])
            run(name, f"{fastest} compiled", partial(ours, name, fastest, True, device, options, flops))
        if name == "rrdb_psnr" and "basicsr" in available(options.peers):
            run(name, "BasicSR", partial(basicsr, device, options))
    written = table(rows, machine)
    print(written)
    if options.markdown:
        options.markdown.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
