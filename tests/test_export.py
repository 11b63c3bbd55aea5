"""Networks as ONNX files give what PyTorch gives, at every size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dlas.archs import create_network
from dlas.cli.main import main
from dlas.errors import CheckpointError, MissingPackageError
from dlas.inference import onnx_file
from dlas.inference.model import Found, Model

FAMILIES = {
    "compact": {"which_model": "SRVGGNetCompact", "num_feat": 8, "num_conv": 1, "scale": 2},
    "rrdb": {"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4},
    "rrdb-folded": {"which_model": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, "scale": 2},
    "windows": {"which_model": "SwinIR", "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4, "img_size": 8},
}


def model(options: dict[str, object]) -> Model:
    torch.manual_seed(0)
    return Model(Found(options, dict(create_network(options).state_dict()), "w.pth"))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_size(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed; the extra 'onnx' has it")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; the extra 'onnx' has it")
    built = model(FAMILIES[family])
    torch.save(built.network.state_dict(), tmp_path / "w.pth")
    assert main(["export", "onnx", str(tmp_path / "w.pth"), "-o", str(tmp_path / "w.onnx")]) == 0
    assert "as PyTorch to" in capsys.readouterr().out
    session = runtime.InferenceSession(str(tmp_path / "w.onnx"), providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 21, 30), (3, 40, 17)):
        x = torch.rand(batch, 3, height, width)
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, built(x).numpy(), atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.onnx", "w.pth"]


def test_a_file_that_gives_other_results_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed; the extra 'onnx' has it")
    monkeypatch.setattr(onnx_file, "_compare", lambda *_: 0.1)
    with pytest.raises(CheckpointError, match="gives other results than PyTorch"):
        onnx_file.export_onnx(model(FAMILIES["compact"]), tmp_path / "w.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"writing ONNX files needs the package 'onnxruntime'.*dlas\[onnx\]"):
        onnx_file.export_onnx(model(FAMILIES["compact"]), tmp_path / "w.onnx")
