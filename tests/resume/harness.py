"""Kills training runs with SIGKILL at random moments, restarts them, and compares each with the run that was never disturbed.

    python tests/resume/harness.py --kills 200 --seed 0 [--config psnr] [--plain 4]

Sittings are forks of a process that has imported torch (server.py) and then run train.py; `--plain` of them are processes of
their own. Moments are drawn to cover a run: after a random time, or a random short time after the log, metrics.jsonl, a picture
or a part of a checkpoint appeared. What a sitting was doing is told by its stacks, asked for just before the kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "codes"), str(ROOT / "tests")]

from resume.configurations import CONFIGURATIONS, Configuration  # noqa: E402
from runs import checkpoint_tensors, repeatable  # noqa: E402

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # the bits of a sum depend on the number of threads
LIMIT = 120.0  # seconds after which a sitting counts as hung
POLL = 0.0003
# What a sitting is doing, by a file and the functions of it (any, if none is named) in its stacks; the first that fits holds.
STAGES = (
    ("dropping rows", "run_folder.py", ("forget_after",)),
    ("checkpoint, in the background", "checkpoint_writer.py", ("_write",)),
    ("restoring", "trainer.py", ("_restore",)),
    ("checkpoint", "checkpoint.py", ("save", "_write")),
    ("validation", "trainer.py", ("validate",)),
    ("log row", "trainer.py", ("_log",)),
    ("training step", "iteration.py", ("run",)),
    ("training step", "trainer.py", ("iterate",)),
    ("reading data", "loader.py", ("__next__", "build_loader")),
    ("start-up", "trainer.py", ("__init__", "_announce")),
    ("start-up", "run_folder.py", ("describe",)),
    ("between", "trainer.py", ()),  # in the loop itself, before it, or after it
    ("start-up", "", ()),  # reading the file, importing
)


class Server:
    """Starts sittings; see server.py."""

    def __init__(self, folder: Path) -> None:
        self.seen = folder / "stacks.txt"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["ready"]

    def start(self, arguments: list[str], log: Path, **more: str) -> Sitting:
        """Forks a sitting; for `more` see server.py."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "log": str(log), "seen": str(self.seen), **more}) + "\n")
        self._process.stdin.flush()
        process = json.loads(self._process.stdout.readline())["process"]
        return Sitting(process, log, self)

    def status(self) -> int:
        """Waits for the present sitting's end."""
        assert self._process.stdout is not None
        return int(json.loads(self._process.stdout.readline())["status"])

    def close(self) -> None:
        """Ends the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Sitting:
    """One process of a run, from its start to its end or kill.

    Args:
        process: its id, which is also that of its process group.
        log: what it prints.
        server: who forked it.
        child: it, where it is a process of its own.
    """

    def __init__(self, process: int, log: Path, server: Server | None, child: subprocess.Popen[bytes] | None = None) -> None:
        self.process = process
        self.log = log
        self.started = time.monotonic()
        self._server = server
        self._child = child
        self.status: int | None = None

    @classmethod
    def plain(cls, arguments: list[str], log: Path) -> Sitting:
        """`python train.py ARGUMENTS`."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        return cls(child.pid, log, None, child)

    def ended(self) -> bool:
        """Whether it has ended; `status` then tells how."""
        if self.status is None:
            if self._child is not None:
                self.status = self._child.poll()
            elif self._dead():
                assert self._server is not None
                self.status = self._server.status()
        return self.status is not None

    def wait(self) -> int:
        """Waits for its own end."""
        while not self.ended():
            assert time.monotonic() - self.started < LIMIT, f"hung: {self.log.read_text()[-2000:]}"
            time.sleep(0.002)
        assert self.status is not None
        return self.status

    def kill(self, whole_group: bool) -> str:
        """SIGKILL, to this process alone or to its data workers as well.

        Returns:
            The stage that it was in; "its own end" if it was faster.
        """
        stacks = self._stacks()
        with suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(self.process, signal.SIGKILL)
        status = self.wait()
        if status == -signal.SIGUSR2:  # Python was being taken down already and did not write its stacks any more
            return "exit"
        if status != -signal.SIGKILL:
            return "its own end"
        return "plain process" if stacks is None else stage_of(stacks)

    def _dead(self) -> bool:
        try:  # the server reaps it as soon as it is a zombie
            return Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def _stacks(self) -> str | None:
        if self._server is None:
            return None
        seen = self._server.seen
        before = seen.stat().st_size
        try:
            os.kill(self.process, signal.SIGUSR2)
        except ProcessLookupError:
            return ""
        end = time.monotonic() + 0.2
        while seen.stat().st_size == before and time.monotonic() < end and not self._dead():
            time.sleep(0.0001)
        with seen.open() as file:
            file.seek(before)
            return file.read()


def stage_of(stacks: str) -> str:
    """The stage that the stacks of a sitting tell."""
    for stage, file, functions in STAGES:
        for line in stacks.splitlines():
            where, _, function = line.rpartition(" in ")
            if f'{file}", line' in where and (not functions or function in functions):
                return stage
    return "start-up"


@dataclass
class Trap:
    """A moment: some time after the start, or after something has appeared or changed in the run folder.

    Args:
        pattern: what to watch for, below the run folder; empty for the start itself.
        times: how often it must appear or change.
        delay: seconds from then on.
    """

    pattern: str
    times: int
    delay: float

    def watch(self, folder: Path, sitting: Sitting) -> bool:
        """Waits for the moment. False if the sitting ended before."""
        state, seen = self._state(folder), 0
        while self.pattern and seen < self.times:
            if sitting.ended() or time.monotonic() - sitting.started > LIMIT:
                return False
            new = self._state(folder)
            seen += bool(new - state)
            state = new
            time.sleep(POLL)
        end = time.monotonic() + self.delay if self.pattern else sitting.started + self.delay
        while time.monotonic() < end:
            if sitting.ended():
                return False
            time.sleep(min(POLL, max(0.0, end - time.monotonic())))
        return True

    def _state(self, folder: Path) -> set[tuple[str, int, int]]:
        found = set()
        for path in folder.glob(self.pattern) if self.pattern else ():
            try:
                stat = path.stat()
            except OSError:  # renamed meanwhile
                continue
            found.add((str(path), stat.st_mtime_ns, stat.st_size))
        return found


@dataclass
class Times:
    """Seconds of the undisturbed run, by which moments are drawn.

    Args:
        start: until its first log line.
        whole: until its end.
    """

    start: float
    whole: float


def draw_trap(random_: random.Random, times: Times) -> Trap:
    """A random moment; each line is one part of a run."""
    training = times.whole - times.start
    few = random_.choice((1, 1, 2, 3))
    file = random_.choice(("optimizers*", "state.json", "manifest.json"))
    kind = random_.choice(("start", "restored", "time", "steps", "row", "picture", "partial", "inside", "latest", "complete"))
    return {
        "start": Trap("", 0, random_.uniform(0, times.start)),
        "restored": Trap("train.log", 1, random_.uniform(0, 0.02)),
        "time": Trap("", 0, random_.uniform(0, times.whole)),
        "steps": Trap("train.log", 1, random_.uniform(0, training / 3)),
        "row": Trap("metrics.jsonl", few, random_.uniform(0, 0.004)),
        "picture": Trap("val/*/*/*.png", few, random_.uniform(0, 0.006)),
        "partial": Trap("checkpoints/.partial-*", few, random_.uniform(0, 0.03)),
        "inside": Trap(f"checkpoints/.partial-*/{file}", 1, random_.uniform(0, 0.01)),
        "latest": Trap("checkpoints/.latest", 1, random_.uniform(0, 0.002)),
        "complete": Trap("checkpoints/latest", few, random_.uniform(0, 0.01)),
    }[kind]


@dataclass
class Report:
    """What was done and found.

    Args:
        kills: number of kills by stage.
        runs: runs that were killed and brought to their end.
        restarts: starts beyond the first of each run.
        differences: all that is not as in the undisturbed run; empty if the promise holds.
    """

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    restarts: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def table(self, name: str) -> str:
        """Lines of Markdown."""
        lines = [f"| {name}: stage | kills |", "|---|---|"]
        lines += [f"| {stage} | {count} |" for stage, count in self.kills.most_common()]
        lines += [f"| all | {sum(self.kills.values())} |", ""]
        result = "\n".join(self.differences) or "no difference"
        return "\n".join([*lines, f"{self.runs} runs, {self.restarts} restarts, {self.seconds:.0f} s: {result}", ""])


class Harness:
    """Runs one configuration undisturbed, and then with kills.

    Args:
        name: of the configuration.
        folder: everything is written below it; must not exist.
        server: forks the sittings.
        seed: of the moments.
    """

    def __init__(self, name: str, folder: Path, server: Server, seed: int = 0) -> None:
        self.configuration: Configuration = CONFIGURATIONS[name]
        self.folder = folder
        self.server = server
        self.random = random.Random(f"{seed} {name}")
        self.options = self.configuration.write(folder)
        self.log = folder / "output.txt"
        self.report = Report()
        self.times = Times(0.0, 0.0)
        self.reference = self._undisturbed()

    def kill_often(self, kills: int, per_run: int = 50, plain: int = 0) -> Report:
        """Kills until there were `kills`, with at most `per_run` in one run, which then goes on to its end and is compared.

        Args:
            kills: how many; sittings that end before their moment do not count.
            per_run: kills in one run.
            plain: how many of the kills hit processes of their own instead of forks.
        """
        started = time.monotonic()
        while sum(self.report.kills.values()) < kills and not self.report.differences:
            self._one_run(min(per_run, kills - sum(self.report.kills.values())), plain if self.report.runs == 0 else 0)
        self.report.seconds = time.monotonic() - started
        return self.report

    def _undisturbed(self) -> Path:
        experiments = self.folder / "undisturbed"
        started = time.monotonic()
        sitting = self.server.start(self.configuration.arguments(self.options, experiments), self.log)
        while not sitting.ended() and not list(experiments.glob("*/train.log")):
            time.sleep(POLL)
        begun = time.monotonic()
        if sitting.wait() != 0:
            raise RuntimeError(f"the undisturbed run failed: {self.log.read_text()[-3000:]}")
        self.times = Times(begun - started, time.monotonic() - started)
        (run,) = (path for path in experiments.iterdir() if path.is_dir())
        return run

    def _one_run(self, kills: int, plain: int) -> None:
        experiments = self.folder / f"killed-{self.report.runs}"
        run = experiments / self.reference.name
        self.report.runs += 1
        number = 0
        while True:
            arguments = self.configuration.arguments(self.options, experiments, number)
            number += 1
            self.report.restarts += number > 1
            if plain:
                sitting = Sitting.plain(arguments, self.log)
            else:
                sitting = self.server.start(arguments, self.log)
            if kills == 0:
                sitting.wait()
                break
            trap = draw_trap(self.random, self.times)
            if plain and not trap.pattern:
                trap.delay += 2.0  # importing torch
            if not trap.watch(run, sitting):
                sitting.wait()
                break
            stage = sitting.kill(whole_group=self.random.random() < 0.3)
            if stage == "its own end":
                break
            self.report.kills[stage] += 1
            kills -= 1
            plain = max(0, plain - 1)
        if sitting.status != 0:
            self.report.differences.append(f"{run}: exit status {sitting.status}: {self.log.read_text()[-1500:]}")
        self.report.differences += differences(self.reference, run)
        if not self.report.differences:
            shutil.rmtree(experiments)


def differences(undisturbed: Path, killed: Path) -> list[str]:
    """All that is not the same in two run folders: checkpoints, rows, pictures."""
    found = []
    expected, names = ({p.name for p in (run / "checkpoints").glob("[!.]*")} for run in (undisturbed, killed))
    if expected != names:
        found.append(f"{killed}: checkpoints {sorted(names)} instead of {sorted(expected)}")
    for name in sorted(expected & names):
        found += _different_checkpoints(undisturbed / "checkpoints" / name, killed / "checkpoints" / name)
    one, two = _rows(undisturbed), _rows(killed)
    if one != two:
        pair = next(((a, b) for a, b in zip(one, two, strict=False) if a != b), (len(one), len(two)))
        found.append(f"{killed}: {len(two)} rows instead of {len(one)}; first difference: {pair[1]} instead of {pair[0]}")
    if _pictures(undisturbed) != _pictures(killed):
        names_ = sorted(key for key, _ in _pictures(undisturbed).items() ^ _pictures(killed).items())
        found.append(f"{killed}: other pictures: {names_[:5]}")
    return found


def _different_checkpoints(one: Path, two: Path) -> list[str]:
    if one.is_file():  # `latest`
        return [] if one.read_text() == two.read_text() else [f"{two} says {two.read_text()} instead of {one.read_text()}"]
    found = []
    first, second = checkpoint_tensors(one), checkpoint_tensors(two)
    bad = [key for key in first if key not in second or not _same_bits(first[key], second[key])]
    bad += [key for key in second if key not in first]
    if bad:
        found.append(f"{two}: {len(bad)} of {len(first)} tensors differ: {bad[:5]}")
    states = [json.loads((path / "state.json").read_text()) for path in (one, two)]
    for state in states:
        state["progress"].pop("seconds")
    if states[0] != states[1]:
        found.append(f"{two}: another state.json: {states[1]['progress']} instead of {states[0]['progress']}")
    return found


def _same_bits(one: Tensor, two: Tensor) -> bool:
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return one.reshape(-1).view(torch.uint8).equal(two.reshape(-1).view(torch.uint8))


def _rows(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [repeatable(json.loads(line)) for line in lines]


def _pictures(run: Path) -> dict[str, bytes]:
    found = [path for part in ("val", "visuals") for path in (run / part).rglob("*.png") if not path.name.startswith(".")]
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server for the time of the context."""
    folder.mkdir(parents=True, exist_ok=True)
    started = Server(folder)
    try:
        yield started
    finally:
        started.close()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="for each configuration")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--config", choices=CONFIGURATIONS, action="append", help="one configuration; may be repeated")
    parser.add_argument("--per-run", type=int, default=50, help="kills in one run before it is left to end")
    parser.add_argument("--plain", type=int, default=0, help="kills of processes of their own, which start slowly")
    parser.add_argument("--folder", type=Path, help="where to work, kept (default: a temporary one, kept if it fails)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="dlas-resume-"))
    failed = False
    with server(folder) as forks:
        for name in arguments.config or CONFIGURATIONS:
            harness = Harness(name, folder / name, forks, arguments.seed)
            report = harness.kill_often(arguments.kills, arguments.per_run, arguments.plain)
            print(report.table(name), flush=True)
            failed |= bool(report.differences)
    if failed:
        print(f"kept: {folder}")
    elif arguments.folder is None:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
