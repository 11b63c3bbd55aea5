"""The programs as a user starts them: exit status, messages, what --help costs, train.py then test.py."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toys
from resume.harness import Server, server

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = Path(toys.__file__)


def start(*arguments: str | Path, **options) -> subprocess.Popen:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Programs that are forks of a process which has imported torch. Each script runs as a process of its own in some test."""
    with server(tmp_path_factory.mktemp("server")) as started:
        yield started


class Forked:
    """The part of `subprocess.Popen` that is needed here, for a fork."""

    def __init__(self, forks: Server, folder: Path, script: str, *arguments: str | Path) -> None:
        out, err = folder / "out.txt", folder / "err.txt"
        for path in (out, err):
            path.write_text("")
        self.stdout, self.stderr = out.open(), err.open()
        self._sitting = forks.start([*map(str, arguments)], out, errors=str(err), script=script)
        self.pid = self._sitting.process

    def wait_for(self, text: str) -> None:
        """Until a line with the text has been printed."""
        while text not in self.stdout.readline():
            assert not self._sitting.ended(), self.stderr.read()
            time.sleep(0.005)

    def communicate(self) -> tuple[int, str, str]:
        """What remains of its output, after its end."""
        return self._sitting.wait(), self.stdout.read(), self.stderr.read()


@pytest.fixture
def fork(forks, tmp_path):
    return lambda script, *arguments: Forked(forks, tmp_path, script, *arguments).communicate()


@pytest.fixture
def options(tmp_path):
    path = tmp_path / "toy.yml"
    path.write_text(f"plugins: [{PLUGIN}]\npath: {{experiments: {tmp_path}}}\n{toys.PSNR}")
    return path


def test_the_entry_scripts_are_short():
    for name in ("train.py", "test.py"):
        assert len((ROOT / name).read_text().splitlines()) <= 15


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_help_does_not_import_torch(script):
    code = f"import sys, runpy; sys.argv = ['{script}', '--help']\ntry: runpy.run_path('{script}', run_name='__main__')\n"
    code += "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
    status, out, _ = run("-c", code)
    assert status == 0
    assert "-opt FILE" in out
    assert "exit status" in out


def test_train_then_resume_then_test(options, tmp_path, fork):
    status, out, err = run("train.py", "-opt", options, "--set", "train.niter=4")
    assert (status, err) == (0, "")
    assert "step 4/4" in out
    assert "bicubic" in out
    assert (tmp_path / "toy/config.yml").read_text() == options.read_text()
    status, out, _ = fork("train.py", "-opt", options, "--set", "train.niter=8")
    assert status == 0
    assert f"going on from {tmp_path}/toy/checkpoints/4" in out

    evaluation = tmp_path / "eval.yml"
    evaluation.write_text(
        f"name: eval\npath: {{run: {tmp_path}/toy, experiments: {tmp_path}}}\n"
        "datasets:\n  val: {mode: toy_pairs, name: toys}\n"
    )
    status, out, err = fork("test.py", "-opt", evaluation)
    assert (status, err) == (0, "")
    assert "bicubic_psnr" in out
    with (tmp_path / "eval/toys/metrics.csv").open() as file:
        table = list(csv.reader(file))
    assert table[0] == ["image", "psnr", "ssim_y", "bicubic_psnr", "bicubic_ssim_y"]
    assert [row[0] for row in table] == ["image", "picture0", "picture1", "mean"]
    mean = [sum(float(row[column]) for row in table[1:3]) / 2 for column in range(1, 5)]
    assert [float(value) for value in table[3][1:]] == pytest.approx(mean)
    assert (tmp_path / "eval/toys/picture0.png").is_file()
    for value in table[3][1:]:
        assert f"{float(value):.4f}" in out


def test_a_wrong_file_ends_with_2_and_says_where(options):
    options.write_text(options.read_text().replace("niter: 8", "nitre: 8"))
    status, _, err = run("train.py", "-opt", options)
    assert status == 2
    assert "toy.yml:22:3: train.nitre: unknown key; did you mean 'niter'?" in err
    assert "Traceback" not in err
    assert run("train.py")[0] == 2
    assert run("train.py", "-opt", "nothing.yml")[0] == 2


def test_a_failing_run_ends_with_1(options, fork):
    status, _, err = fork("train.py", "-opt", options, "--set", "networks.generator.dropout=2")
    assert status == 1
    assert "network 'generator' cannot work on its inputs" in err
    assert "Traceback" not in err


def test_testing_without_a_checkpoint_says_what_to_do(tmp_path, options):
    evaluation = tmp_path / "eval.yml"
    evaluation.write_text(f"name: e\npath: {{run: {tmp_path}/toy}}\ndatasets:\n  val: {{mode: toy_pairs}}\n")
    status, _, err = run("test.py", "-opt", evaluation)
    assert status == 2
    assert "there is no run at" in err
    assert "train it first" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stopped_run_saves_says_how_to_go_on_and_ends_with_128_and_the_signal(forks, options, tmp_path, number):
    endless = ("--set", "train.niter=1000000", "--set", "logger.save_checkpoint_freq=1000000")
    process = Forked(forks, tmp_path, "train.py", "-opt", options, *endless)
    process.wait_for("step 2/")
    os.kill(process.pid, number)
    status, out, err = process.communicate()
    assert (status, err) == (128 + number, "")
    assert f"stopped by {number.name}" in out
    assert "the same command goes on from there" in out
    step = int((tmp_path / "toy/checkpoints/latest").read_text())
    assert f"saved {tmp_path}/toy/checkpoints/{step}" in out


def test_a_second_ctrl_c_stops_at_once(tmp_path, options):
    write_slow_loss(tmp_path, options)
    process = start("train.py", "-opt", options, "--set", "steps.generator.losses.slow={type: toy_slow, weight: 1}")
    while "sleeping" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)  # the step itself would take a minute
    assert process.returncode == 130
    assert "newest checkpoint is intact" in err


def test_a_loop_that_hangs_can_be_ended(tmp_path, options, fork):
    write_slow_loss(tmp_path, options)
    slow = ("--set", "steps.generator.losses.slow={type: toy_slow, weight: 1}")
    status, _, err = fork("train.py", "-opt", options, *slow, "--set", "train.watchdog={seconds: 0.5, action: stop}")
    assert status == 1
    assert "in stage 'forward' of 'generator'" in err
    assert "slow.py" in (tmp_path / "toy/train.log").read_text()
    assert "the same command goes on from the newest checkpoint" in err


def test_a_step_that_fails_can_be_run_again_anywhere(tmp_path, options, fork):
    plugin = tmp_path / "failing.py"
    plugin.write_text(
        "from dlas.losses.base import Loss\nfrom dlas.registry import LOSSES\n"
        "@LOSSES.register('toy_failing')\nclass Failing(Loss):\n    def __init__(self):\n        super().__init__()\n"
        "    def forward(self, state, context):\n        raise ZeroDivisionError('the fault of the plug-in')\n"
    )
    options.write_text(options.read_text().replace("plugins: [", "plugins: [failing.py, "))
    status, out, err = fork("train.py", "-opt", options, "--set", "steps.generator.losses.bad={type: toy_failing, weight: 1}")
    assert status == 1
    assert "ZeroDivisionError" in err
    bundle = tmp_path / "toy/crashes/1-generator"
    assert f"dlas replay {bundle}" in out
    status, out, err = fork("codes/dlas/__main__.py", "replay", bundle)
    assert (status, err) == (0, "")
    assert "the fault of the plug-in" in out
    assert out.endswith("the fault shows again\n")


def write_slow_loss(folder: Path, options: Path) -> None:
    slow = folder / "slow.py"
    slow.write_text(
        "import time\nfrom dlas.losses.base import Loss\nfrom dlas.registry import LOSSES\n"
        "@LOSSES.register('toy_slow')\nclass Slow(Loss):\n    def __init__(self):\n        super().__init__()\n"
        "    def forward(self, state, context):\n        print('sleeping', flush=True)\n        time.sleep(60)\n"
    )
    options.write_text(options.read_text().replace("plugins: [", f"plugins: [{slow}, "))


def test_check_and_list_commands(options):
    status, out, _ = run_dlas("check", "-opt", options)
    assert (status, "0 errors" in out) == (0, True)
    status, out, _ = run_dlas("list", "archs")
    assert "RRDBNet" in out
    status, out, _ = run_dlas("list", "losses", "pix")
    assert "criterion" in out
    status, _, err = run_dlas("list", "archs", "RRDBnet")
    assert (status, "did you mean 'RRDBNet'?" in err) == (2, True)


def run_dlas(*arguments: str | Path) -> tuple[int, str, str]:
    setup = f"import sys; sys.path.insert(0, {str(ROOT / 'codes')!r}); from dlas.cli.main import main"
    return run("-c", f"{setup}; sys.exit(main({[*map(str, arguments)]}))")
