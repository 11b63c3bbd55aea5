"""Reads networks that were converted for ncnn: a ``.param`` file, which lists layers, and the ``.bin`` file of their weights.

Two families are known, by the layers they are made of: RRDBNet (realesrgan-x4plus, realesrgan-x4plus-anime, RealSR) and
SRVGGNetCompact (realesr-animevideov3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlas.errors import CheckpointError

MAGIC = "7767517"
"""First line of a .param file."""

HALF = 0x01306B47
"""Before weights in 16 bits; 0 stands before weights in 32."""

CONVS_PER_BLOCK = 15
"""Convolutions in a residual-in-residual dense block."""


@dataclass(frozen=True)
class NcnnNetwork:
    """A network as it was found.

    Args:
        options: of `create_network`.
        state_dict: float32, with the names of the network that `options` describe.
        resize: factor by which the result is resized at the end, as ncnn does: the x2 and x3 forms of realesr-animevideov3
            are its x4 form with a factor of 1/2 and 3/4.
    """

    options: dict[str, Any]
    state_dict: dict[str, Tensor]
    resize: float


@dataclass(frozen=True)
class _Layer:
    kind: str
    name: str
    numbers: Mapping[int, str]  # options by their number
    weight: Tensor | None = None
    bias: Tensor | None = None

    def number(self, key: int, default: int = 0) -> int:
        return int(self.numbers.get(key, default))


def read_ncnn(path: str | Path) -> NcnnNetwork:
    """The network in a pair of files.

    Args:
        path: the .param file, or the .bin file; the other has the same name.

    Returns:
        What to build, and its weights.

    Raises:
        CheckpointError: a file is missing or damaged, weights are quantised, or the layers are of no known family.
    """
    path = Path(path)
    param, binary = path.with_suffix(".param"), path.with_suffix(".bin")
    for each in (param, binary):
        if not each.is_file():
            raise CheckpointError(f"{each}: no such file; ncnn's networks are a pair of files, .param and .bin")
    layers = _read_weights(_read_layers(param), binary)
    weighted = [layer for layer in layers if layer.weight is not None]
    kinds = [layer.kind for layer in weighted]
    if len(kinds) >= 3 and kinds == ["Convolution", "PReLU"] * (len(kinds) // 2) + ["Convolution"]:
        return _compact(layers, weighted, param)
    ups = sum(layer.kind == "Interp" for layer in layers)
    if set(kinds) == {"Convolution"} and ups and (len(kinds) - ups - 4) % CONVS_PER_BLOCK == 0 and len(kinds) > ups + 4:
        return _rrdbnet(weighted, ups)
    found = ", ".join(sorted({layer.kind for layer in layers}))
    raise CheckpointError(f"{param}: neither an RRDBNet nor an SRVGGNetCompact; it has layers of the kinds {found}")


def _read_layers(path: Path) -> list[_Layer]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != MAGIC:
        raise CheckpointError(f"{path}: not a .param file of ncnn in text form: its first line is not {MAGIC}")
    layers = []
    try:
        count = int(lines[1].split()[0])
        for line in lines[2 : 2 + count]:
            kind, name, inputs, outputs, *rest = line.split()
            numbers = dict(word.split("=", 1) for word in rest[int(inputs) + int(outputs) :])
            layers.append(_Layer(kind, name, {int(key): value for key, value in numbers.items()}))
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: damaged: line {len(layers) + 3} is not a layer") from error
    if len(layers) != count:
        raise CheckpointError(f"{path}: damaged or not all of it: {len(layers)} of {count} layers")
    return layers


def _read_weights(layers: list[_Layer], path: Path) -> list[_Layer]:
    stream = _Stream(path)
    found = []
    for layer in layers:
        if layer.kind == "PReLU":
            slopes = stream.take(layer.number(0), np.float32)
            layer = _Layer(layer.kind, layer.name, layer.numbers, slopes)
        elif layer.kind == "Convolution":
            out_channels, size = layer.number(0), layer.number(6)
            width = layer.number(1, 1)
            height = layer.number(11, width)
            weight = stream.take_tagged(size, layer.name).view(out_channels, -1, height, width)
            bias = stream.take(out_channels, np.float32) if layer.number(5) else torch.zeros(out_channels)
            layer = _Layer(layer.kind, layer.name, layer.numbers, weight, bias)
        found.append(layer)
    stream.finish()
    return found


class _Stream:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()
        self.place = 0

    def take(self, count: int, kind: type[np.generic]) -> Tensor:
        size = count * np.dtype(kind).itemsize
        if self.place + size > len(self.content):
            raise CheckpointError(f"{self.path}: not all of it, or of another .param file: it ends within the weights")
        values = np.frombuffer(self.content, np.dtype(kind).newbyteorder("<"), count, self.place)
        self.place += -(-size // 4) * 4
        return torch.from_numpy(values.astype(np.float32))

    def take_tagged(self, count: int, layer: str) -> Tensor:
        tag = int.from_bytes(self.content[self.place : self.place + 4], "little")
        self.place += 4
        if tag not in (0, HALF):
            raise CheckpointError(
                f"{self.path}: the weights of the layer '{layer}' are quantised (tag {tag:#010x}), or it is of another .param "
                "file; weights in 32 or 16 bits are read"
            )
        return self.take(count, np.float16 if tag == HALF else np.float32)

    def finish(self) -> None:
        if self.place != len(self.content):
            rest = len(self.content) - self.place
            raise CheckpointError(f"{self.path}: of another .param file: {rest} bytes are left behind the last layer")


def _compact(layers: list[_Layer], weighted: list[_Layer], path: Path) -> NcnnNetwork:
    shuffles = [layer for layer in layers if layer.kind == "PixelShuffle"]
    if len(shuffles) != 1:
        raise CheckpointError(f"{path}: an SRVGGNetCompact shuffles pixels once, and this network {len(shuffles)} times")
    scale = shuffles[0].number(0)
    first, last = weighted[0].weight, weighted[-1].weight
    assert first is not None and last is not None
    resizes = [layer for layer in layers if layer.kind == "Interp"]  # the first enlarges the input
    options = {
        "which_model": "SRVGGNetCompact",
        "num_in_ch": first.shape[1],
        "num_out_ch": last.shape[0] // scale**2,
        "num_feat": first.shape[0],
        "num_conv": len(weighted) // 2 - 1,
        "scale": scale,
    }
    resize = float(resizes[1].numbers[1]) if len(resizes) > 1 else 1.0
    return NcnnNetwork(options, _named([f"body.{number}" for number in range(len(weighted))], weighted), resize)


def _rrdbnet(weighted: list[_Layer], ups: int) -> NcnnNetwork:
    blocks = (len(weighted) - ups - 4) // CONVS_PER_BLOCK
    names = ["conv_first"]
    for block in range(blocks):
        names += [f"body.{block}.rdb{dense}.conv{conv}" for dense in range(1, 4) for conv in range(1, 6)]
    names += ["conv_body", *(f"conv_up{number}" for number in range(1, ups + 1)), "conv_hr", "conv_last"]
    state_dict = _named(names, weighted)
    options = {
        "which_model": "RRDBNet",
        "in_nc": state_dict["conv_first.weight"].shape[1],
        "out_nc": state_dict["conv_last.weight"].shape[0],
        "nf": state_dict["conv_first.weight"].shape[0],
        "gc": state_dict["body.0.rdb1.conv1.weight"].shape[0],
        "nb": blocks,
        "scale": 2**ups,
    }
    return NcnnNetwork(options, state_dict, 1.0)


def _named(names: list[str], weighted: list[_Layer]) -> dict[str, Tensor]:
    state_dict = {}
    for name, layer in zip(names, weighted, strict=True):
        assert layer.weight is not None
        state_dict[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            state_dict[f"{name}.bias"] = layer.bias
    return state_dict
