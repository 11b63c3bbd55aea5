"""What test.py does: networks from a checkpoint, data sets through them, pictures and a table out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dlas.config import Config
from dlas.data.images.files import write_png
from dlas.engine import checkpoint
from dlas.engine.build import build_dataset, build_networks
from dlas.engine.device import apply_numeric_settings, choose_device
from dlas.engine.ema import ModelEma
from dlas.engine.encoders import check_encoders
from dlas.engine.evaluate import Evaluated, Evaluator
from dlas.engine.figures import warn_of_undefined
from dlas.engine.fitting import load_weights
from dlas.engine.results import write_result
from dlas.engine.sheets import Sheets
from dlas.errors import CheckpointError, printable
from dlas.observe.console import LOGGER
from dlas.observe.figure_table import format_figures, write_figures


@dataclass(frozen=True)
class TestResult:
    """One data set's result: its folder, the figures of each picture, and their means."""

    folder: Path
    pictures: dict[str, dict[str, float]]
    means: dict[str, float]

    def table(self) -> str:
        """The figures as aligned text."""
        return format_figures(self.pictures, self.means)


def run_test(config: Config) -> dict[str, TestResult]:
    """Evaluates every data set of the file but `train`.

    Writes <experiments>/<name>/<set>/<picture>.png (of sound also .wav) and metrics.csv beside them.

    Raises:
        CheckpointError: no weights are named, or the run has no complete checkpoint.
    """
    device = choose_device(config.device)
    apply_numeric_settings(config)
    networks = build_networks(config, device)
    emas = _load_weights(config, networks)
    if config.eval.weights == "both" and not emas:
        LOGGER.warning("eval.weights: both: there are no averaged weights; the networks' own are measured alone")
    evaluator = Evaluator(config, networks, emas, device)
    results = {}
    for key, section in config.datasets.items():
        if key == "train":
            continue
        name = section.name or key
        folder = Path(config.path.experiments) / config.name / name
        folder.mkdir(parents=True, exist_ok=True)
        dataset = build_dataset(config, key)
        check_encoders({key: dataset}, networks)
        bad_files: dict[str, str] = {}
        sheets = Sheets(config.eval)

        def keep(result: Evaluated, folder: Path = folder, sheets: Sheets = sheets) -> None:
            sheets.add(result)
            write_result(folder / (f"{result.name}.raw" if result.prefix else result.name), result.output, config.eval)

        figures = evaluator.run(dataset, 0, keep, bad_files)
        for path, reason in bad_files.items():
            LOGGER.warning("left out %s: %s", printable(path), reason)
        for label, sheet in sheets.draw().items():
            write_png(folder.parent / f"{name}.{label}.png", sheet)
        warn_of_undefined(name, figures)
        results[name] = TestResult(folder, figures.pictures, figures.means)
        write_figures(folder / "metrics.csv", figures.pictures, figures.means)
    return results


def _load_weights(config: Config, networks: dict[str, nn.Module]) -> dict[str, ModelEma]:
    """From the checkpoint that `path` names, as `eval.weights` says; returns the averages that it has besides."""
    if config.path.run is None:
        # A discriminator, for instance, has no part in evaluation.
        options = [each for _, injector in config.evaluation_injectors() for each in injector.options.values()]
        used = {each for each in options if isinstance(each, str)}
        missing = [name for name in networks if name in used and name not in config.path.pretrain]
        if missing:
            raise CheckpointError(
                f"no weights are named for {', '.join(missing)}: give 'path.run' (the folder of a training run) "
                "or 'path.pretrain.<network>' (a weights file)"
            )
        return {}
    found = checkpoint.named(Path(config.path.run) / "checkpoints", config.path.checkpoint)
    snapshot = checkpoint.load(found)
    averages = {}
    for name, network in networks.items():
        averaged = config.eval.weights == "ema" and name in snapshot.emas
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
        if config.eval.weights == "both" and name in snapshot.emas:
            averages[name] = ModelEma(network, rate=1)
            averages[name].load_state_dict(snapshot.emas[name])
            LOGGER.info("%s's average from %s", name, found / f"{name}.ema.safetensors")
    return averages
