"""What test.py does: networks from a checkpoint, data sets through them, pictures and a table out."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dlas.config import Config
from dlas.data.images.files import write_png
from dlas.engine import checkpoint
from dlas.engine.build import build_dataset, build_networks
from dlas.engine.device import apply_numeric_settings, choose_device
from dlas.engine.evaluate import Evaluated, Evaluator
from dlas.engine.fitting import load_weights
from dlas.engine.precision import Precision
from dlas.errors import CheckpointError, printable
from dlas.observe.console import LOGGER


@dataclass(frozen=True)
class TestResult:
    """One data set's result: its folder, the figures of each picture, and their means."""

    folder: Path
    pictures: dict[str, dict[str, float]]
    means: dict[str, float]


def run_test(config: Config) -> dict[str, TestResult]:
    """Evaluates every data set of the file but `train`.

    Writes <experiments>/<name>/<set>/<picture>.png and metrics.csv beside them.

    Raises:
        CheckpointError: no weights are named, or the run has no complete checkpoint.
    """
    device = choose_device(config.device)
    apply_numeric_settings(config)
    networks = build_networks(config, device)
    _load_weights(config, networks)
    evaluator = Evaluator(config, networks, {}, Precision(config.precision, device), device)
    results = {}
    for key, section in config.datasets.items():
        if key == "train":
            continue
        name = section.name or key
        folder = Path(config.path.experiments) / config.name / name
        folder.mkdir(parents=True, exist_ok=True)
        dataset = build_dataset(config, key)
        bad_files: dict[str, str] = {}
        pictures: dict[str, dict[str, float]] = {}

        def keep(result: Evaluated, folder: Path = folder, pictures: dict[str, dict[str, float]] = pictures) -> None:
            write_png(folder / f"{result.name}.png", result.output[0])
            pictures[result.name] = result.values

        means = evaluator.run(dataset, 0, keep, bad_files)
        for path, reason in bad_files.items():
            LOGGER.warning("left out %s: %s", printable(path), reason)
        results[name] = TestResult(folder, pictures, means)
        _write_table(results[name])
    return results


def _load_weights(config: Config, networks: dict[str, nn.Module]) -> None:
    """From the checkpoint that `path` names: averaged weights where there are any and `eval.use_ema` is on."""
    if config.path.run is None:
        missing = [name for name in networks if name not in config.path.pretrain]
        if missing:
            raise CheckpointError(
                f"no weights are named for {', '.join(missing)}: give 'path.run' (the folder of a training run) "
                "or 'path.pretrain.<network>' (a weights file)"
            )
        return
    found = checkpoint.named(Path(config.path.run) / "checkpoints", config.path.checkpoint)
    snapshot = checkpoint.load(found)
    for name, network in networks.items():
        averaged = config.eval.use_ema and name in snapshot.emas
        tensors = snapshot.emas.get(name) if averaged else snapshot.networks.get(name)
        if tensors is None:
            if config.networks[name].trainable and name not in config.path.pretrain:
                raise CheckpointError(
                    f"checkpoint {found} has no network '{name}'; it has: {', '.join(snapshot.networks)}. Leave `networks` to "
                    f"the run, or name a weights file: path.pretrain.{name}"
                )
            continue  # frozen in training: built with its pretrained weights
        file = found / (f"{name}.ema.safetensors" if averaged else f"{name}.safetensors")
        load_weights(config, name, network, tensors, source=str(file))
        LOGGER.info("%s from %s", name, file)


def _write_table(result: TestResult) -> None:
    partial = result.folder / ".metrics.csv.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *result.means])
        for name, values in result.pictures.items():
            writer.writerow([name, *(values.get(metric, "") for metric in result.means)])
        writer.writerow(["mean", *result.means.values()])
    partial.replace(result.folder / "metrics.csv")


def format_table(result: TestResult) -> str:
    """The figures of a data set as aligned text."""
    metrics = list(result.means)
    width = max(len(name) for name in [*result.pictures, "mean"])
    columns = [max(len(metric), 9) for metric in metrics]
    head = " " * width + "".join(f"  {metric:>{size}}" for metric, size in zip(metrics, columns, strict=True))
    rows = [(name, values) for name, values in result.pictures.items()] + [("mean", result.means)]
    lines = [head]
    for name, values in rows:
        cells = (f"{values[m]:.4f}" if m in values else "" for m in metrics)
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>{size}}" for cell, size in zip(cells, columns, strict=True)))
    return "\n".join(lines)
