"""Networks as ONNX files, each compared with what PyTorch makes of the same pictures before it gets its name."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlas.errors import CheckpointError, MissingPackageError
from dlas.inference.model import Model

TOLERANCE = 1e-4
"""Largest difference from PyTorch's result, for pictures in [0, 1]."""


@dataclass(frozen=True)
class Exported:
    """What was checked: sizes of pictures (height, width) and the largest difference on them."""

    sizes: list[tuple[int, int]]
    difference: float


def export_onnx(model: Model, path: Path, *, size: tuple[int, int] | None = None, opset: int = 18) -> Exported:
    """Writes a network as ONNX: input `x` (batch, channels, height, width) in [0, 1], output `y`.

    Args:
        model: the network, on the CPU.
        path: the file, complete and checked or not written at all.
        size: height and width of all pictures; any if None.
        opset: version of ONNX's operators.

    Returns:
        What was checked.

    Raises:
        MissingPackageError: a package of the extra `onnx` is missing.
        CheckpointError: the network cannot be exported so, or the file gives other results.
    """
    runtime = _package("onnxruntime")
    for name in ("onnx", "onnxscript"):
        _package(name)
    first = size or (32, 40)
    example = torch.rand(2 if size is None else 1, model.channels, *first)
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    options: dict[str, Any] = {} if size else {"dynamic_shapes": {"x": free}}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model.eval(), (example,), dynamo=True, opset_version=opset, input_names=["x"], output_names=["y"], **options
            )
    except Exception as error:  # the exporter has its own errors for every stage
        advice = "" if size else "; pictures of one size may be possible: --size HEIGHTxWIDTH"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{model.source}: PyTorch cannot export {model.title} to ONNX: {reason}{advice}") from error
    assert program is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _quiet():
            program.save(str(partial), external_data=False)
        sizes = [size] if size else [first, (48, 32), (31, 57)]
        difference = _compare(model, runtime, partial, sizes)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{model.source}: the ONNX file gives other results than PyTorch (by up to {difference:.2g}); it was not "
                "written"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(sizes, difference)


def _compare(model: Model, runtime: Any, path: Path, sizes: list[tuple[int, int]]) -> float:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for height, width in sizes:
        x = torch.rand(1, model.channels, height, width, generator=generator)
        with torch.no_grad():
            expected = model(x)
        try:
            (found,) = session.run(None, {"x": x.numpy()})
        except Exception as error:  # onnxruntime's errors have no common type
            raise CheckpointError(
                f"{model.source}: {model.title} as ONNX takes no picture of {height}x{width}: "
                f"{str(error).splitlines()[0]}; pictures of one size may be possible: --size HEIGHTxWIDTH"
            ) from error
        if found.shape != tuple(expected.shape):
            raise CheckpointError(f"{model.source}: {model.title} as ONNX is bound to one size of pictures: give it, --size")
        largest = max(largest, float((torch.from_numpy(found) - expected).abs().max()))
    return largest


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(name, "writing ONNX files", "onnx") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's running commentary; its errors are raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
