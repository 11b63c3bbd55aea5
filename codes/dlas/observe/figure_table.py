"""The figures of a data set, picture by picture, for programs and for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from dlas.observe import disk


def write_figures(path: Path, pictures: Mapping[str, Mapping[str, float]], means: Mapping[str, float]) -> None:
    """Writes a CSV file, whole or not at all: a line for each picture, and `mean` at the end. Its folder is made if missing.

    Args:
        path: the file.
        pictures: figures by metric, by picture. One that a picture has not (a distance between sets) is left empty.
        means: of the set, by metric: the columns.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", *means])
    for name, values in pictures.items():
        writer.writerow([name, *(values.get(metric, "") for metric in means)])
    writer.writerow(["mean", *means.values()])
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace_text(path, text.getvalue().encode("utf-8", "backslashreplace"))


def format_figures(pictures: Mapping[str, Mapping[str, float]], means: Mapping[str, float]) -> str:
    """The same as aligned text."""
    width = max(len(name) for name in [*pictures, "mean"])
    columns = [max(len(metric), 9) for metric in means]
    lines = [" " * width + "".join(f"  {metric:>{size}}" for metric, size in zip(means, columns, strict=True))]
    for name, values in [*pictures.items(), ("mean", means)]:
        cells = (f"{values[metric]:.4f}" if metric in values else "" for metric in means)
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, columns, strict=True)))
    return "\n".join(lines)
