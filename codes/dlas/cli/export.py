"""`dlas export`: `dlas export onnx MODEL -o FILE`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dlas.cli.upscale import add_model_argument


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", choices=("onnx",), metavar="KIND", help="onnx")
    add_model_argument(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--size", type=_size, metavar="HxW", help="all pictures have this size; by default any")
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="version of ONNX's operators (18)")


def run(arguments: argparse.Namespace) -> int:
    """Writes and checks the file."""
    from dlas.inference.model import Model, find
    from dlas.inference.onnx_file import export_onnx

    model = Model(find(arguments.model, arguments.network))
    done = export_onnx(model, Path(arguments.output), size=arguments.size, opset=arguments.opset)
    sizes = ", ".join(f"{height}x{width}" for height, width in done.sizes)
    print(f"{arguments.output}: {model.title}; as PyTorch to {done.difference:.1g} on pictures of {sizes}")
    return 0


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, for instance 256x256, got '{text}'")
    return int(found[1]), int(found[2])
