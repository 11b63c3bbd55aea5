"""Weights of another kind, network or shape: what they are is said, and nothing in them is run or half loaded."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.cli.main import main
from dlas.engine.fitting import fitting_options
from dlas.errors import CheckpointError
from dlas.interop.state_dicts import fits, load_into, read_state_dict

BASE = {"nf": 8, "nb": 2, "gc": 4, "scale": 4}


def rrdbnet(**options: Any) -> nn.Module:
    return create_network({"which_model": "RRDBNet", **BASE, **options})


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "w.pth")
    return folder / "w.pth"


def load(path: Path, network: nn.Module | None = None) -> nn.Module:
    network = network or rrdbnet()
    load_into(network, read_state_dict(path), source=str(path))
    return network


def assert_loaded(path: Path, expected: dict[str, Tensor]) -> None:
    found = load(path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class RunsCode:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class TestForms:
    @pytest.mark.parametrize("prefix", ["model.", "generator.", "G.", "net_g.module.", "module.model.generator."])
    def test_a_network_inside_a_larger_program(self, tmp_path: Path, prefix: str) -> None:
        weights = rrdbnet().state_dict()
        content = {**{prefix + name: value for name, value in weights.items()}, "loss.vgg.0.weight": torch.ones(2)}
        assert_loaded(saved(tmp_path, {"state_dict": content, "epoch": 3}), weights)
        assert_loaded(saved(tmp_path, {prefix + name: value for name, value in weights.items()}), weights)

    @pytest.mark.parametrize("name", ["generator", "net_g", "ema", "g_ema", "model_state_dict"])
    def test_the_only_network_in_a_training_state(self, tmp_path: Path, name: str) -> None:
        weights = rrdbnet().state_dict()
        optimizer = torch.optim.Adam(rrdbnet().parameters()).state_dict()
        assert_loaded(saved(tmp_path, {name: weights, "optimizer": optimizer, "epoch": 3}), weights)

    def test_several_networks_are_named(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"generator": {"a": torch.ones(1)}, "critic": {"b": torch.ones(1)}, "epoch": 3})
        with pytest.raises(CheckpointError, match=r"several networks: generator, critic\. Save the one you mean: torch\.save"):
            read_state_dict(path)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_floating_point_types_are_converted(self, tmp_path: Path, dtype: torch.dtype) -> None:
        weights = {name: value.to(dtype) for name, value in rrdbnet().state_dict().items()}
        found = load(saved(tmp_path, weights)).state_dict()
        assert all(found[name].dtype == torch.float32 and torch.equal(found[name], weights[name].float()) for name in weights)

    def test_sparse_tensors_are_filled_in(self, tmp_path: Path) -> None:
        weights = rrdbnet().state_dict()
        assert_loaded(saved(tmp_path, {k: v.to_sparse() if v.ndim > 1 else v for k, v in weights.items()}), weights)

    def test_endings_in_capitals_and_bin(self, tmp_path: Path) -> None:
        weights = rrdbnet().state_dict()
        for name in ("w.PTH", "pytorch_model.bin"):
            saved(tmp_path, weights).rename(tmp_path / name)
            assert_loaded(tmp_path / name, weights)


class TestRefusals:
    @pytest.mark.parametrize("protocol", range(6))
    def test_no_pickle_runs_code(self, tmp_path: Path, protocol: int) -> None:
        (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": RunsCode(tmp_path / "mark")}, protocol=protocol))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(CheckpointError, match=r"refused|not a PyTorch checkpoint"):
                read_state_dict(tmp_path / "w.pth")
        assert not (tmp_path / "mark").exists()

    def test_no_pickle_inside_an_archive_runs_code(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(RunsCode(tmp_path / "mark"), protocol=2))
            archive.writestr("archive/version", "3\n")
        with pytest.raises(CheckpointError, match=r"refused, because loading it would run code .*mkdir"):
            read_state_dict(tmp_path / "w.pth")
        assert not (tmp_path / "mark").exists()

    def test_a_folder_is_told_with_the_files_in_it(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"this is a folder; expected a checkpoint file"):
            read_state_dict(tmp_path)
        saved(tmp_path, {})
        with pytest.raises(CheckpointError, match=r"this is a folder; name one of the files in it: w\.pth"):
            read_state_dict(tmp_path)

    def test_the_state_of_an_optimiser_is_no_network(self, tmp_path: Path) -> None:
        optimizer = torch.optim.Adam(rrdbnet().parameters()).state_dict()
        for content in (optimizer, {"epoch": 1, "iter": 7, "optimizers": [optimizer], "schedulers": []}):
            with pytest.raises(CheckpointError, match=r"the state of an optimiser or of a training run .*without weights"):
                read_state_dict(saved(tmp_path, content))
        save_file({"g/optimizer/state/0/exp_avg": torch.ones(1)}, tmp_path / "optimizers.safetensors")
        with pytest.raises(CheckpointError, match="it holds the state of an optimiser, not weights"):
            load(tmp_path / "optimizers.safetensors")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("strict", [True, False])
    def test_weights_that_are_not_finite(self, tmp_path: Path, value: float, strict: bool) -> None:
        target = rrdbnet()
        before = target.conv_first.weight.clone()
        weights = {**rrdbnet().state_dict(), "conv_last.bias": torch.tensor([0, value, 0])}
        with pytest.raises(CheckpointError, match=r"a\.pth holds weights that are not finite in 1 of 72 entries: conv_last"):
            load_into(target, weights, source="a.pth", strict=strict)
        assert torch.equal(target.conv_first.weight, before)

    def test_a_buffer_may_hold_an_infinity(self) -> None:
        class Masked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(2))
                self.register_buffer("mask", torch.full((2,), float("-inf")))

        assert load_into(Masked(), Masked().state_dict(), source="a.pth") == []

    def test_whole_numbers_are_no_weights(self) -> None:
        weights = {name: (value * 100).to(torch.int8) for name, value in rrdbnet().state_dict().items()}
        with pytest.raises(CheckpointError, match=r"holds whole numbers instead of weights \(a quantised network\?\)"):
            load_into(rrdbnet(), weights, source="a.pth")

    def test_weights_without_values(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {name: value.to("meta") for name, value in rrdbnet().state_dict().items()})
        with pytest.raises(CheckpointError, match=r"'conv_first\.weight' has no values"):
            read_state_dict(path)

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = saved(tmp_path, {})

        def refuse(self: Path, mode: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(type(path), "open", refuse)
        with pytest.raises(CheckpointError, match=r"w\.pth: cannot be read: Permission denied; check its permissions"):
            read_state_dict(path)


class TestFittingOptions:
    @pytest.mark.parametrize(
        "changed",
        [{"scale": 1}, {"scale": 2}, {"scale": 8}, {"nb": 3}, {"nf": 16}, {"gc": 6}, {"in_nc": 1}, {"nb": 1, "nf": 12}],
    )
    def test_the_options_that_differ_are_found(self, changed: dict[str, int]) -> None:
        network = rrdbnet()
        assert fitting_options("RRDBNet", BASE, network, rrdbnet(**changed).state_dict(), seconds=120) == changed
        torch.manual_seed(0)
        state = torch.get_rng_state()
        fitting_options("RRDBNet", BASE, network, network.state_dict())
        assert torch.equal(torch.get_rng_state(), state)

    def test_another_architecture_has_none(self) -> None:
        assert fitting_options("RRDBNet", BASE, rrdbnet(), {"encoder.0.weight": torch.ones(8, 3, 3, 3)}) is None

    def test_fits(self) -> None:
        assert fits(rrdbnet(), rrdbnet().state_dict())
        assert not fits(rrdbnet(), rrdbnet(nf=16).state_dict())
        assert not fits(rrdbnet(), {**rrdbnet().state_dict(), "more": torch.ones(1)})


RUN = """\
name: n
scale: 4
datasets:
  train: {mode: builtin_photos, target_size: 32, batch_size: 1, n_workers: 0}
networks: {g: {which_model_G: RRDBNet, nf: 8, nb: 2, gc: 4}}
steps:
  g:
    training: g
    optimizer: adam
    optimizer_params: {lr: 1e-4}
    injectors: {gen: {type: generator, generator: g, in: lq, out: gen}}
    losses: {pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}
train: {niter: 1}
logger: {tensorboard: false}
"""


class TestThroughTheProgram:
    def run(self, folder: Path, *overrides: str, text: str = RUN) -> int:
        path = folder / "o.yml"
        path.write_text(text)
        return main(["train", "-opt", str(path), "--set", f"path.experiments={folder}", *(f"--set={o}" for o in overrides)])

    def test_pretrained_weights_of_another_scale(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = saved(tmp_path, {"params_ema": rrdbnet(scale=2).state_dict()})
        assert self.run(tmp_path, f"path.pretrain.g={path}") == 1
        error = capsys.readouterr().err
        assert "It looks like scale 2 (the file says 4)" in error
        assert "conv_first.weight (8, 12, 3, 3) instead of (8, 3, 3, 3)" in error
        assert "Traceback" not in error

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"<html>", "this is a web page"), (b"version https://git-lfs", "Git LFS pointer"), (b"", "the file is empty")],
    )
    def test_pretrained_files_of_another_kind(self, tmp_path: Path, capsys: Any, content: bytes, message: str) -> None:
        (tmp_path / "w.pth").write_bytes(content)
        assert self.run(tmp_path, f"path.pretrain.g={tmp_path}/w.pth") == 1
        assert message in capsys.readouterr().err

    def test_a_pickle_with_code(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = saved(tmp_path, {"params": rrdbnet().state_dict(), "x": RunsCode(tmp_path / "mark")})
        assert self.run(tmp_path, f"path.pretrain.g={path}") == 1
        assert "refused, because loading it would run code" in capsys.readouterr().err
        assert not (tmp_path / "mark").exists()

    def test_resume_state_that_is_no_checkpoint_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(tmp_path) == 0
        for given in (tmp_path / "n", tmp_path / "n/checkpoints"):
            assert self.run(tmp_path, "name=m", f"path.resume_state={given}") == 1
            assert f"name one of the checkpoints in it, for instance {tmp_path}/n/checkpoints/1" in capsys.readouterr().err
        path = saved(tmp_path, {})
        assert self.run(tmp_path, "name=m", f"path.resume_state={path}") == 1
        assert "this is a file, and a folder <run>/checkpoints/<step> is expected" in capsys.readouterr().err

    def test_a_network_that_changed_since_its_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(tmp_path) == 0
        assert self.run(tmp_path, "networks.g.nb=3") == 1
        assert "It looks like nb 2 (the file says 3)" in capsys.readouterr().err
        paths = f"path: {{run: {tmp_path}/n, experiments: {tmp_path}}}"
        (tmp_path / "e.yml").write_text(f"name: e\n{paths}\ndatasets: {{v: {{mode: builtin_photos}}}}\n")
        assert main(["test", "-opt", str(tmp_path / "e.yml"), "--set", "networks.g.nb=4"]) == 1
        assert "It looks like nb 2 (the file says 4)" in capsys.readouterr().err
