"""Validation in the course of a run: figures into the log and metrics.jsonl, pictures into the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from dlas.config import Config
from dlas.data.base import Dataset
from dlas.data.images.files import write_png
from dlas.engine.best import BestFigures
from dlas.engine.distributed import Ranks
from dlas.engine.evaluate import Evaluated, Evaluator
from dlas.engine.figures import warn_of_undefined
from dlas.engine.interrupt import StopRequest
from dlas.engine.progress import Progress
from dlas.engine.results import is_sound, write_result
from dlas.engine.sheets import Sheets
from dlas.engine.stage import STAGE
from dlas.errors import printable
from dlas.observe.console import LOGGER
from dlas.observe.figure_table import write_figures
from dlas.observe.pictures import comparison_sheet
from dlas.observe.recorder import Recorder
from dlas.observe.run_folder import RunFolder


class Validation:
    """Evaluates every data set but `train`.

    Args:
        config: the run's configuration.
        datasets: by key.
        evaluator: runs the networks.
        folder: of the run.
        best: takes the figures.
        ranks: the processes of the run; the first one records.

    Attributes:
        words: the latest figure, for the progress bar.
    """

    def __init__(
        self,
        config: Config,
        datasets: Mapping[str, Dataset],
        evaluator: Evaluator,
        folder: RunFolder,
        best: BestFigures,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.sets = {config.datasets[key].name or key: each for key, each in datasets.items() if key != "train"}
        self.evaluator = evaluator
        self.folder = folder
        self.best = best
        self.ranks = ranks
        self.words = ""
        self.figures: dict[str, dict[str, float]] = {}  # of the latest validation, by set
        self._left_out: set[str] = set()  # told of once

    def run(self, progress: Progress, recorder: Recorder, seconds: float, stop: StopRequest) -> None:
        """Validates, and enters it into `progress`.

        Args:
            progress: of the run.
            recorder: takes figures and sheets.
            seconds: that the run has taken so far.
            stop: a request to stop is heeded between pictures, or between sets where several processes share them.

        Raises:
            Stopping: there is one; nothing of the set in hand is recorded.
            TrainingError: a picture does not fit into memory, or cannot be measured.
        """
        self.figures = {}
        for name, dataset in self.sets.items():
            if stop.agreed(self.ranks):
                stop.check()
            sheets = Sheets(self.config.eval)
            show = partial(self._show, name, progress.step, recorder, stop)
            left_out: dict[str, str] = {}

            def take(result: Evaluated, sheets: Sheets = sheets, show: Callable[[Evaluated], None] = show) -> None:
                show(result)
                sheets.add(result)

            figures = self.evaluator.run(dataset, progress.step, take, left_out)
            for other in self.evaluator.ranks.gather(left_out):
                left_out |= other
            sheets.merge(self.evaluator.ranks)
            self.figures[name] = figures.means
            recorder.validation(progress.step, progress.samples, seconds, name, figures.means)
            if self.ranks.main:
                self._draw(sheets, name, progress.step, recorder)
            if figures.means and self.ranks.main:
                table = self.folder.validation / name / f"{progress.step}.csv"
                write = partial(write_figures, table, figures.pictures, figures.means)
                self.folder.dispensable("figures of the validation's pictures", write)
            self._tell(name, figures.means, progress)
            warn_of_undefined(name, figures)
            for path, reason in left_out.items():
                if path not in self._left_out:
                    LOGGER.warning("left out of validation: %s: %s", printable(path), reason)
            self._left_out |= left_out.keys()
        progress.validated = progress.step

    def _draw(self, sheets: Sheets, name: str, step: int, recorder: Recorder) -> None:
        for label, sheet in sheets.draw().items():
            recorder.image(f"sheets/{name}/{label}", sheet, step)
            write = partial(write_png, self.folder.validation / name / f"{step}.{label}.png", sheet)
            self.folder.dispensable("sheets of the validation", write)

    def _tell(self, name: str, means: dict[str, float], progress: Progress) -> None:
        baseline = self.config.eval.baseline
        words = []
        for metric in self.config.eval.figures:
            if metric not in means:
                continue
            word = f"{metric} {means[metric]:.4f}"
            reference = means.get(f"{baseline}_{metric}")
            if reference is not None:
                word += f" ({baseline} {reference:.4f}, {means[metric] - reference:+.4f})"
            words.append(word)
            self.best.update(progress.best, name, metric, means[metric], progress.step)
        LOGGER.info("validation at step %d on %s: %s", progress.step, name, "  ".join(words) or "no metrics")
        if words:
            self.words = "val " + " ".join(words[0].split()[:2])

    def _show(self, name: str, step: int, recorder: Recorder, stop: StopRequest, result: Evaluated) -> None:
        if not self.ranks.many:
            stop.check()
        STAGE.enter("eval", result.name)
        if self.config.eval.save_images and (self.ranks.main or self.evaluator.ranks.many):
            folder = self.folder.validation / name / result.name
            beside = {"hq": "target", "lq": "input", self.config.eval.baseline: "baseline"}

            def write() -> None:
                write_result(folder / (f"{step}.raw" if result.prefix else f"{step}"), result.output, self.config.eval)
                for label, which in beside.items():
                    if not (folder / f"{label}.png").exists() and (picture := getattr(result, which)) is not None:
                        write_result(folder / label, picture, self.config.eval)

            self.folder.dispensable("pictures of the validation", write)
        if result.position >= self.config.eval.num_sheets:
            return
        rate, tag = self.config.eval.sampling_rate, f"{name}/{result.prefix}{result.name}"
        if rate is not None and is_sound(result.output):
            recorder.sound(tag, result.output[0].flatten(), rate, step)
        elif result.output.dim() == 4 and result.input is not None:
            row = [p[0] for p in (result.input, result.baseline, result.output, result.target) if p is not None]
            recorder.image(tag, comparison_sheet(row), step)
