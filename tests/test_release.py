"""A released file says what it is, and the network between two is their mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import toys
from dlas.archs import create_network
from dlas.cli.main import main
from dlas.engine.trainer import Trainer
from dlas.errors import CheckpointError
from dlas.inference.model import Model, find
from dlas.inference.release import release, save_weights
from dlas.interop.state_dicts import read_state_dict
from runs import configure


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    Trainer(configure(folder, toys.PSNR, "train.niter=2", "train.val_freq=2", "checkpointing_enabled=true")).run()
    return folder / "toy"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_run_is_released(run: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", str(run), "-o", str(tmp_path / "r"), "--precision", precision]) == 0
    assert str(tmp_path / "r/toy.safetensors") in capsys.readouterr().out
    with safe_open(tmp_path / "r/toy.safetensors", "pt") as file:
        metadata = file.metadata()
        dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - no mapping
    assert dtypes == {torch.float16 if precision == "fp16" else torch.float32}
    assert json.loads(metadata["dlas.config"])["name"] == "toy"
    metrics = json.loads(metadata["dlas.metrics"])
    assert metrics["val"]["psnr"] > 0
    assert set(json.loads(metadata["dlas.data"])) == {"train", "val"}
    card = (tmp_path / "r/README.md").read_text()
    assert f"| val | psnr | {metrics['val']['psnr']:.4f} |" in card and "dlas upscale toy.safetensors" in card
    with Image.open(tmp_path / "r/comparison.png") as sheet:
        assert sheet.width == 4 * 196 and sheet.height % 196 == 0

    x = torch.rand(1, 3, 12, 12)
    released, own = Model(find(tmp_path / "r/toy.safetensors")), Model(find(run))
    torch.testing.assert_close(released(x), own(x), atol=2e-3 if precision == "fp16" else 0, rtol=0)


def test_what_is_no_run(tmp_path: Path) -> None:
    torch.save(
        create_network({"which_model": "SRVGGNetCompact", "num_feat": 8, "num_conv": 1}).state_dict(), tmp_path / "w.pth"
    )
    with pytest.raises(CheckpointError, match=r"w\.pth: is not the folder of a training run"):
        release(tmp_path / "w.pth", tmp_path / "r")


def test_weights_that_16_bits_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'a' has weights beyond the range of fp16"):
        save_weights(tmp_path / "w.safetensors", {"a": torch.tensor([1e6])}, {}, half=True)
    assert list(tmp_path.iterdir()) == []


def test_between_two_networks(tmp_path: Path) -> None:
    options = {"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4}
    states = [dict(create_network(options).state_dict()) for _ in range(2)]
    for name, state in zip("ab", states, strict=True):
        torch.save(state, tmp_path / f"{name}.pth")
    command = ["interpolate", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--alpha", "0.25"]
    assert main([*command, "-o", str(tmp_path / "m.safetensors")]) == 0
    for name, value in read_state_dict(tmp_path / "m.safetensors").items():
        torch.testing.assert_close(value, 0.75 * states[0][name] + 0.25 * states[1][name])
    assert find(tmp_path / "m.safetensors").options["nf"] == 8


def test_networks_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, width in (("a", 8), ("b", 16)):
        network = create_network({"which_model": "RRDBNet", "nf": width, "nb": 1, "gc": 4})
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    assert main(["interpolate", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "-o", str(tmp_path / "m.safetensors")]) == 1
    assert "these networks differ" in capsys.readouterr().err
