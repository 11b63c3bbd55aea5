"""Networks converted for ncnn are read: small pairs of files are written here, layer by layer, and come back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.errors import CheckpointError
from dlas.interop.ncnn import HALF, read_ncnn

OPTIONS: dict[str, dict[str, Any]] = {
    "RRDBNet": {"nf": 5, "nb": 2, "gc": 3, "in_nc": 3, "out_nc": 3, "scale": 4},
    "SRVGGNetCompact": {"num_feat": 5, "num_conv": 2, "num_in_ch": 3, "num_out_ch": 3, "scale": 3},
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_network({"which_model": name, **OPTIONS[name]})


def layers_of(state_dict: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor | None]]:
    """Kind, weight and bias of each layer that has weights, in the order of the state dict."""
    found = []
    for key, weight in state_dict.items():
        layer, _, kind = key.rpartition(".")
        if kind == "weight":
            found.append(("Convolution" if weight.ndim == 4 else "PReLU", weight, state_dict.get(f"{layer}.bias")))
    return found


def write_pair(folder: Path, name: str, state_dict: Mapping[str, Tensor], *, half: bool, resize: float = 1.0) -> Path:
    lines, content = [], b""
    for number, (kind, weight, bias) in enumerate(layers_of(state_dict)):
        head = f"{kind} layer_{number} 1 1 {number} {number + 1} 0={weight.shape[0]}"
        if bias is None:
            lines.append(head)
            content += weight.numpy().astype("<f4").tobytes()
            continue
        lines.append(f"{head} 1=3 4=1 5=1 6={weight.numel()} 9=2 -23310=1,2.000000e-01")
        values = weight.numpy().astype("<f2" if half else "<f4").tobytes()
        content += (HALF if half else 0).to_bytes(4, "little") + values + b"\0" * (-len(values) % 4)
        content += bias.numpy().astype("<f4").tobytes()
    if name == "RRDBNet":
        lines += ["Interp up1 1 1 a b 0=1 1=2.000000e+00 2=2.000000e+00"] * 2
    else:
        lines += ["PixelShuffle shuffle 1 1 a b 0=3", "Interp base 1 1 c d 0=1 1=3.000000e+00", "BinaryOp add 2 1 b d out"]
        if resize != 1:
            lines.append(f"Interp shrink 1 1 out small 0=3 1={resize} 2={resize}")
    path = folder / "net.param"
    path.write_text("\n".join(["7767517", f"{len(lines)} 99", *lines]) + "\n")
    path.with_suffix(".bin").write_bytes(content)
    return path


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("half", [False, True])
def test_what_was_written_is_read(name: str, half: bool, tmp_path: Path) -> None:
    state_dict = build(name).state_dict()
    assert any(value.numel() % 2 for value in state_dict.values() if value.ndim == 4), "16 bits are filled up to whole words"
    found = read_ncnn(write_pair(tmp_path, name, state_dict, half=half))
    assert found.options == {"which_model": name, **OPTIONS[name]}
    assert found.resize == 1
    assert found.state_dict.keys() == state_dict.keys()
    for key, value in state_dict.items():
        rounded = value.half().float() if half and value.ndim == 4 else value
        assert torch.equal(found.state_dict[key], rounded), key
    create_network(found.options).load_state_dict(found.state_dict)


def test_result_that_is_made_smaller(tmp_path: Path) -> None:
    name = "SRVGGNetCompact"
    path = write_pair(tmp_path, name, build(name).state_dict(), half=True, resize=0.5)
    assert read_ncnn(path.with_suffix(".bin")).resize == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text, content: (text, content[:-4]), "net.bin: not all of it"),
        (lambda text, content: (text, content + b"\0\0"), "net.bin: of another .param file: 2 bytes are left"),
        (lambda text, content: (text, b"\x38\x4b\x0d\0" + content[4:]), r"quantised \(tag 0x000d4b38\)"),
        (lambda text, content: (text.replace("7767517", "7767516"), content), "its first line is not 7767517"),
        (lambda text, content: ("\n".join(text.splitlines()[:-1]), content), "net.param: damaged or not all of it"),
        (
            lambda text, content: (text.replace("Convolution layer_3 1 1", "Convolution layer_3 one 1"), content),
            "line 6 is not",
        ),
        (lambda text, content: (text.replace("Interp", "Other"), content), "neither an RRDBNet nor an SRVGGNetCompact"),
    ],
)
def test_files_that_cannot_be_read(change: Any, message: str, tmp_path: Path) -> None:
    path = write_pair(tmp_path, "RRDBNet", build("RRDBNet").state_dict(), half=True)
    text, content = change(path.read_text(), path.with_suffix(".bin").read_bytes())
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_ncnn(path)


def test_half_of_a_pair(tmp_path: Path) -> None:
    (tmp_path / "net.param").write_text("7767517\n")
    with pytest.raises(CheckpointError, match=r"net\.bin: no such file"):
        read_ncnn(tmp_path / "net.param")
