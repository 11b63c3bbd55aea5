"""Checkpoint files of every known form are read, damaged and dangerous ones are refused, nothing is half loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.errors import CheckpointError
from dlas.interop.state_dicts import load_into, read_state_dict

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([7.0, 8.0])}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in WEIGHTS.items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class RunsCode:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class TestRead:
    @pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.ckpt"])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_torch_files(self, tmp_path: Path, name: str, zipped: bool) -> None:
        torch.save(WEIGHTS, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert_same(read_state_dict(tmp_path / name), WEIGHTS)

    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(WEIGHTS, tmp_path / "w.safetensors")
        found = read_state_dict(str(tmp_path / "w.safetensors"))
        assert_same({name: found[name] for name in WEIGHTS}, WEIGHTS)

    @pytest.mark.parametrize(
        "content",
        [
            {"params_ema": WEIGHTS, "params": {"other": torch.ones(1)}},
            {"params": WEIGHTS, "iter": 5},
            {"state_dict": WEIGHTS, "epoch": 3},
            {"model": WEIGHTS, "optimizer": {"lr": 0.1}},
            {"model": {"state_dict": WEIGHTS}},
        ],
    )
    def test_containers(self, tmp_path: Path, content: dict[str, Any]) -> None:
        torch.save(content, tmp_path / "w.pth")
        assert_same(read_state_dict(tmp_path / "w.pth"), WEIGHTS)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "module._orig_mod.", "_orig_mod.module."])
    def test_prefix_that_all_names_share(self, tmp_path: Path, prefix: str) -> None:
        torch.save(prefixed(prefix), tmp_path / "w.pth")
        assert_same(read_state_dict(tmp_path / "w.pth"), WEIGHTS)

    def test_prefix_that_only_some_names_have(self, tmp_path: Path) -> None:
        content = {**prefixed("net."), "head.weight": torch.ones(1)}
        torch.save(content, tmp_path / "w.pth")
        assert_same(read_state_dict(tmp_path / "w.pth"), content)

    def test_parameters_come_without_history(self, tmp_path: Path) -> None:
        torch.save({"weight": nn.Parameter(torch.ones(2))}, tmp_path / "w.pth")
        assert not read_state_dict(tmp_path / "w.pth")["weight"].requires_grad

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        torch.save({"params": WEIGHTS, "extra": RunsCode(tmp_path / "mark")}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"w\.pth: refused.*mkdir.*torch\.save\(<its state dict>, 'w_weights\.pth'\)"):
            read_state_dict(tmp_path / "w.pth")
        assert not (tmp_path / "mark").exists()

    def test_whole_module_is_refused(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"refused.*torch\.nn\.modules\.linear\.Linear"):
            read_state_dict(tmp_path / "w.pth")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("w.pth", b"", "the file is empty"),
            ("w.safetensors", b"", "the file is empty"),
            ("w.pth", b"\n<!DOCTYPE html><html>", "web page"),
            ("w.safetensors", b"<html><body>Not found", "web page"),
            ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
            ("w.pth", b"these are no weights", r"not a PyTorch checkpoint \(it starts with b'these ar'\)"),
            ("w.safetensors", b"these are no weights", "not a safetensors file, or not all of it"),
            ("w.onnx", b"these are no weights", r"unknown kind of file '\.onnx'; expected one of \.safetensors, \.pth"),
        ],
    )
    def test_files_of_another_kind(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            read_state_dict(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nothing\.pth: no such file"):
            read_state_dict(tmp_path / "nothing.pth")

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_truncated_torch_file(self, tmp_path: Path, zipped: bool, kept: float) -> None:
        path = tmp_path / "w.pth"
        torch.save({"weight": torch.rand(100)}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(CheckpointError, match="damaged or not all of it"):
            read_state_dict(path)

    def test_truncated_safetensors(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file(WEIGHTS, path)
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match="not all of it"):
            read_state_dict(path)

    def test_torch_file_with_the_wrong_ending(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match=r"although its name ends in \.safetensors; rename it to \.pth"):
            read_state_dict(tmp_path / "w.safetensors")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, "holds no weights"),
            ({"params": {}}, "holds no weights"),
            ([torch.ones(1)], "holds a list"),
            (torch.ones(1), "holds a Tensor"),
            ({"epoch": 3, "weight": torch.ones(1)}, r"not tensors \(epoch\); expected tensors by name, or these under one of"),
        ],
    )
    def test_without_weights(self, tmp_path: Path, content: Any, message: str) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path / "w.pth")


def rrdbnet(**options: Any) -> nn.Module:
    return create_network({"which_model_G": "RRDBNet", "nf": 8, "nb": 2, "gc": 4, **options})


def original_name(key: str) -> str:
    for present, original in {"conv_body": "trunk_conv", "conv_up": "upconv", "conv_hr": "HRconv"}.items():
        key = key.replace(present, original)
    return key.replace("body.", "RRDB_trunk.").replace("rdb", "RDB") if key.startswith("body.") else key


class TestLoadInto:
    def test_all_entries(self) -> None:
        source, target = rrdbnet(), rrdbnet()
        assert load_into(target, source.state_dict(), source="a.pth") == []
        assert_same(target.state_dict(), source.state_dict())

    def test_older_names(self) -> None:
        source, target = rrdbnet(), rrdbnet()
        old = {original_name(key): value for key, value in source.state_dict().items()}
        assert "RRDB_trunk.0.RDB1.conv1.weight" in old
        load_into(target, old, source="a.pth")
        assert_same(target.state_dict(), source.state_dict())

    def test_half_precision_is_converted(self) -> None:
        target = rrdbnet()
        load_into(target, {key: value.half() for key, value in rrdbnet().state_dict().items()}, source="a.pth")
        assert {value.dtype for value in target.state_dict().values()} == {torch.float32}

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"nb": 3}, r"it has 3 of body\.<i> and the network 2, so the number of blocks \(an option such as nb\) differs"),
            ({"nf": 16}, r"the layers are the same but for their sizes, so a width \(an option such as nf or gc\) differs"),
            ({"gc": 8}, r"the layers are the same but for their sizes, so a width \(an option such as nf or gc\) differs"),
            ({"scale": 2}, r"only the inputs of conv_first differ, so the input's channels or size \(or the scale\) differ"),
            ({"scale": 8}, r"some layers are only in one of them, so an option that adds layers \(such as scale\) differs"),
        ],
    )
    def test_mismatch_is_explained(self, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(CheckpointError, match=rf"a\.pth does not fit the network RRDBNet: {reason}"):
            load_into(rrdbnet(), rrdbnet(**options).state_dict(), source="a.pth")

    def test_mismatches_are_listed_and_nothing_is_loaded(self) -> None:
        target = rrdbnet()
        before = {key: value.clone() for key, value in target.state_dict().items()}
        given = rrdbnet().state_dict()
        del given["conv_hr.bias"]
        given["conv_extra.bias"] = torch.ones(1)
        given["conv_last.bias"] = torch.ones(5)
        with pytest.raises(CheckpointError) as error:
            load_into(target, given, source="a.pth")
        assert str(error.value).splitlines()[1:] == [
            "  missing in the file (1): conv_hr.bias",
            "  not in the network (1): conv_extra.bias",
            "  of another shape (1): conv_last.bias (5,) instead of (3,)",
        ]
        assert_same(target.state_dict(), before)

    def test_long_lists_are_cut_and_counted(self) -> None:
        with pytest.raises(CheckpointError, match=r"missing in the file \(90\): (body\.\d\S+, ){4}\.\.\.$"):
            load_into(rrdbnet(nb=5), rrdbnet(nb=2).state_dict(), source="a.pth")

    def test_partial_loading_tells_what_was_left(self) -> None:
        target, given = rrdbnet(), rrdbnet().state_dict()
        before = target.state_dict()["conv_last.bias"].clone()
        del given["conv_hr.bias"]
        given["conv_extra.bias"] = torch.ones(1)
        given["conv_last.bias"] = torch.ones(5)
        left = load_into(target, given, source="a.pth", strict=False)
        assert left == ["conv_hr.bias", "conv_last.bias", "conv_extra.bias"]
        assert torch.equal(target.conv_last.bias, before)
        assert torch.equal(target.conv_first.weight, given["conv_first.weight"])

    @pytest.mark.parametrize("strict", [True, False])
    def test_another_architecture(self, strict: bool) -> None:
        with pytest.raises(CheckpointError, match="no name in common, so it belongs to another architecture"):
            load_into(rrdbnet(), {"encoder.0.weight": torch.ones(1)}, source="a.pth", strict=strict)

    def test_network_whose_own_names_have_a_wrapper_prefix(self, tmp_path: Path) -> None:
        class Holder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(2, 3)

        source, target = Holder(), Holder()
        save_file(source.state_dict(), tmp_path / "w.safetensors")
        load_into(target, read_state_dict(tmp_path / "w.safetensors"), source="w.safetensors")
        assert_same(target.state_dict(), source.state_dict())
