"""Power-function averages, and averages that are put together after a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import toys
from dlas.cli.main import main
from dlas.config.schema import EmaConfig, PostHocEmaConfig
from dlas.engine.averages import Averages
from dlas.engine.distributed import Single
from dlas.engine.ema import ModelEma
from dlas.engine.ema_profiles import Track, exponent_of, from_step, post_hoc_factors, power
from dlas.engine.post_hoc import reconstruct
from dlas.errors import CheckpointError, ConfigurationError
from runs import assert_same_tensors, configure, trainer

POST_HOC = ["train.ema.post_hoc={every: 3, dtype: fp32}", "train.niter=9", "train.lr_scheme={type: constant}"]


@pytest.mark.parametrize(("width", "exponent"), [(0.05, 16.97), (0.1, 6.94)])
def test_exponents_are_those_of_the_paper(width: float, exponent: float) -> None:
    assert exponent_of(width) == pytest.approx(exponent, abs=0.005)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_width_is_the_standard_deviation_of_the_weights(width: float) -> None:
    profile, steps = power(width), 4000
    weights = torch.zeros(steps, dtype=torch.float64)
    for n in range(1, steps + 1):
        weights *= profile(n)
        weights[n - 1] = 1 - profile(n)
    times = torch.arange(1, steps + 1) / steps
    assert weights.sum().item() == pytest.approx(1)  # nothing is left of the initial weights
    mean = (weights * times).sum()
    assert math.sqrt((weights * (times - mean) ** 2).sum()) == pytest.approx(width, rel=5e-3)


@pytest.mark.parametrize("width", [0.0, 0.3, -1.0])
def test_impossible_widths(width: float) -> None:
    with pytest.raises(ValueError, match="relative width"):
        power(width)


def test_a_late_average_begins_with_the_weights_of_its_start() -> None:
    network = nn.Linear(1, 1, bias=False)
    late, fresh = ModelEma(network, rate=from_step(power(0.1), 50)), None
    for n in range(1, 101):
        with torch.no_grad():
            network.weight.fill_(math.sin(n))
        late.update(n)
        if n == 50:
            fresh = ModelEma(network, rate=power(0.1))
            assert late.state_dict()["weight"].item() == network.weight.item()
        elif fresh is not None:
            fresh.update(n - 50)
    assert fresh is not None
    assert torch.equal(late.state_dict()["weight"], fresh.state_dict()["weight"])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("width", [0.04, 0.075, 0.12, 0.2])
def test_reconstruction_equals_the_average_that_was_kept(tmp_path: Path, width: float, dtype: str) -> None:
    """Weights that drift and jitter, as in training."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(16, 16, bias=False)
    section = EmaConfig(post_hoc=PostHocEmaConfig(every=250, dtype=dtype))
    averages, kept = Averages(section, {"net": network}), ModelEma(network, rate=power(width))
    drift = torch.randn(16, 16, generator=generator)
    for n in range(1, 5001):
        with torch.no_grad():
            network.weight.copy_(torch.tanh(drift * n / 2000) + 0.05 * torch.randn(16, 16, generator=generator))
        averages.update(n, lambda _: False)
        kept.update(n)
        if averages.due(n):
            averages.write_snapshot(tmp_path, n, Single())
    made, step = reconstruct(tmp_path, "net", width)
    wanted = kept.state_dict()["weight"]
    assert step == 5000
    assert ((made["weight"] - wanted).norm() / wanted.norm()).item() < 1e-3


def test_a_snapshot_of_the_wanted_width_is_taken_as_it_is() -> None:
    snapshots = [Track(w, n) for n in (100, 200) for w in (0.05, 0.1)]
    assert post_hoc_factors(snapshots, Track(0.1, 200)) == pytest.approx([0, 0, 0, 1], abs=1e-9)


def test_a_run_writes_snapshots_and_goes_on_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves, tmp_path / "new"):
        folder.mkdir()
    trainer(whole, toys.PSNR, *POST_HOC).run()
    trainer(halves, toys.PSNR, *POST_HOC, "train.niter=5").run()
    trainer(halves, toys.PSNR, *POST_HOC).run()
    one, two = (next(folder.glob("*/ema_snapshots")) for folder in (whole, halves))
    assert sorted(each.name for each in one.iterdir()) == ["3", "6", "9"]
    for folder in one.iterdir():
        assert_same_tensors(folder, two / folder.name)
    out = tmp_path / "made.safetensors"
    assert main(["ema", str(one.parent), "--width", "0.07", "-o", str(out)]) == 0
    assert "relative width 0.07 up to step 9" in capsys.readouterr().out
    network = trainer(tmp_path / "new", toys.PSNR, f"path.pretrain={{generator: {out}}}").networks["generator"]
    assert all(value.equal(network.state_dict()[key]) for key, value in load_file(out).items())


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no snapshots of 'generator'.*post_hoc"):
        reconstruct(tmp_path, "generator", 0.1)
    network = nn.Linear(1, 1)
    averages = Averages(EmaConfig(post_hoc=PostHocEmaConfig(every=10)), {"generator": network})
    averages.update(1, lambda _: False)
    averages.write_snapshot(tmp_path, 10, Single())
    with pytest.raises(CheckpointError, match="no snapshot of step 7"):
        reconstruct(tmp_path, "generator", 0.1, 7)
    next(tmp_path.glob("*/10/*0.05*")).write_bytes(b"abc")
    with pytest.raises(CheckpointError, match=r"0\.05\.safetensors cannot be read"):
        reconstruct(tmp_path, "generator", 0.1)


@pytest.mark.parametrize("option", ["train.ema.width=0.3", "train.ema.post_hoc={every: 2, widths: [0.05, 0.4]}"])
def test_too_wide_an_average_is_refused_by_the_check(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is too wide.*0\.288"):
        configure(tmp_path, toys.PSNR, option)
