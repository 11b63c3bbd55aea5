"""The training loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from dlas.config import Config
from dlas.context import mix_seed
from dlas.data.images.files import write_png
from dlas.data.loader import Loader, build_loader
from dlas.data.sampler import SampleOrder
from dlas.engine import checkpoint
from dlas.engine.build import build_dataset, build_networks
from dlas.engine.device import apply_numeric_settings, choose_device, memory_format, peak_memory_mb, seed_everything
from dlas.engine.ema import ModelEma
from dlas.engine.evaluate import Evaluated, Evaluator
from dlas.engine.interrupt import StopRequest
from dlas.engine.iteration import IterationRunner
from dlas.engine.loss_state import loss_state, restore_loss_state
from dlas.engine.meter import Meter
from dlas.engine.microbatch import MicroBatch
from dlas.engine.precision import Precision, has_bf16
from dlas.engine.step import TrainingStep
from dlas.errors import CheckpointError, ConfigurationError, DataError, TrainingError
from dlas.interop.state_dicts import load_into
from dlas.observe.console import LOGGER, LogFile, compact, duration, progress_bar
from dlas.observe.pictures import comparison_sheet, grid
from dlas.observe.recorder import Recorder
from dlas.observe.run_folder import RunFolder
from dlas.optim.schedules import build_schedule


@dataclass
class Progress:
    """What a run has done so far; with weights and optimisers, all that a restart needs.

    Args:
        step: completed iterations.
        samples: training samples taken.
        seconds: time spent in this and earlier sittings.
        best: best mean of each validation metric, by set and name, with its step.
        resume_state: `path.resume_state` that the run went on from, so that the same command does not go back to it again.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    resume_state: str | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended: the step it reached and the signal that stopped it, if one did."""

    step: int
    folder: Path
    stopped_by: Signals | None = None


class Trainer:
    """Trains what a configuration describes.

    Args:
        config: from `dlas.config.load`.
        resume: `auto` goes on from the run's newest complete checkpoint; `never` sets an older folder aside and starts anew.
        source: the YAML file, copied into the run folder.

    Raises:
        UserError: the data, the weights or the device cannot be used.
    """

    def __init__(self, config: Config, resume: Literal["auto", "never"] = "auto", source: Path | None = None) -> None:
        assert config.train is not None, "load(..., mode='train') gives a configuration with a train section"
        self.config = config
        self.settings = config.train
        self.device = choose_device(config.device)
        self.layout = memory_format(config.memory_format)
        apply_numeric_settings(config)
        seed_everything(mix_seed(config.seed, "weights"), self.device)
        self.precision = Precision(config.precision, self.device)
        self.folder = RunFolder(Path(config.path.experiments) / config.name)
        self.resume = resume
        self.source = source
        self.datasets = {key: build_dataset(config, key) for key in config.datasets}
        self.batch_size = config.datasets["train"].batch_size
        if self.batch_size < self.settings.mega_batch_factor:
            raise ConfigurationError(
                f"a batch of {self.batch_size} cannot be cut into {self.settings.mega_batch_factor} micro-batches; "
                "raise datasets.train.batch_size or lower train.mega_batch_factor"
            )
        self.networks = build_networks(config, self.device)
        self.meter = Meter()
        self.steps = [
            TrainingStep(name, section, self.networks, self.precision, self.device, self.meter)
            for name, section in config.steps.items()
        ]
        for step, section in zip(self.steps, config.steps.values(), strict=True):
            scheme = section.lr_scheme or self.settings.lr_scheme
            options = {"type": scheme.type, **scheme.options} if scheme else {"type": "constant"}
            step.schedule = build_schedule(options, step.optimizer, self.settings.niter, warmup_iter=self.settings.warmup_iter)
            for each in step.losses:
                if step.runs.opens(self.settings.niter) and each.gate.opens(self.settings.niter):
                    each.loss.prepare(self.device)
        trained = [name for step in self.steps for name in step.trained]
        for name in self.networks.keys() - set(trained):
            self.networks[name].requires_grad_(False)
        ema = self.settings.ema
        self.emas = {n: ModelEma(self.networks[n], rate=ema.rate, warmup=ema.warmup) for n in trained} if ema.enabled else {}
        self.runner = IterationRunner(
            self.steps,
            self.networks,
            self.emas,
            seed=config.seed,
            parts=self.settings.mega_batch_factor,
            device=self.device,
            layout=self.layout,
        )
        self.evaluator = Evaluator(config, self.networks, self.emas, self.precision, self.device)
        self.progress = Progress()
        self.last_validation = ""
        self._left_out: set[str] = set()  # files left out of validation, and visuals that cannot be shown: told of once
        self._not_shown: set[str] = set()

    # ------------------------------------------------------------------------------------------------------------ the loop

    def run(self) -> RunResult:
        """Trains up to `niter`, validating and saving on the way and at the end.

        Returns:
            Where it ended. After Ctrl-C or SIGTERM the state is saved and `stopped_by` tells the signal.
        """
        with self.folder.locked():
            return self._run()

    def _run(self) -> RunResult:
        aside = self.folder.set_aside() if self.resume == "never" else None
        with LogFile(self.folder.log), StopRequest() as stop:
            if aside is not None:
                LOGGER.info("the older run was set aside: %s", aside)
            self._restore()
            self.folder.describe(self.config, self.source, str(self.device))
            self._announce()
            if self.progress.step >= self.settings.niter:
                LOGGER.info(
                    "this run is complete at step %d; raise train.niter to go on, or start anew with --resume never",
                    self.progress.step,
                )
                return RunResult(self.progress.step, self.folder.path)
            tensorboard = self.folder.tensorboard if self.config.logger.tensorboard else None
            self.recorder = Recorder(self.folder.metrics, tensorboard, self.progress.step)
            try:
                with self._loader() as loader:
                    self._loop(loader, stop)
            finally:
                self.recorder.close()
            if stop.signal is not None:
                LOGGER.info(
                    "stopped by %s at step %d; the same command goes on from there", stop.signal.name, self.progress.step
                )
            return RunResult(self.progress.step, self.folder.path, stop.signal)

    def _loop(self, loader: Loader, stop: StopRequest) -> None:
        self.clock = _Clock(self.progress)
        with progress_bar(self.settings.niter, self.progress.step) as self.bar:
            started = self.progress.step
            try:
                self.advance(loader, self.settings.niter, stop)
            except DataError:
                # A complete step lies behind. A signal to the whole process group ends the workers too; it asks to stop.
                if self.progress.step > started:
                    self.save()
                if stop.signal is None:
                    raise
                return
            self.clock.pause()
            if stop.signal is None:
                self.validate()
            self.save()
        self._report_end(loader)

    def advance(self, loader: Loader, target: int, stop: StopRequest) -> None:
        """Iterates until `target` completed iterations or a request to stop, logging, validating and saving on the way."""
        progress, logger, val_freq = self.progress, self.config.logger, self.settings.val_freq
        while progress.step < target and stop.signal is None:
            self.clock.waiting()
            batch = next(loader)
            self.clock.working()
            log = (progress.step + 1) % logger.print_freq == 0 or progress.step + 1 == target
            self.iterate(batch, log_gradients=log)
            self.bar.update()
            if log:
                self._log(loader)
            if val_freq and progress.step % val_freq == 0 and progress.step < target:
                self.validate()
            if progress.step % logger.save_checkpoint_freq == 0 and progress.step < target:
                self.save()

    def iterate(self, batch: dict[str, Any], log_gradients: bool = False) -> list[MicroBatch]:
        """One iteration: every step of the file on one batch, then the averages.

        Args:
            batch: from the loader: tensors by key, and `positions`.
            log_gradients: also measure gradient norms (costs a pass over the gradients; nothing waits for the device).

        Returns:
            The micro-batches with everything that the steps wrote.
        """
        progress = self.progress
        parts = self.runner.run(batch, progress.step, log_gradients)
        progress.step += 1
        progress.samples += sum(len(part.positions) for part in parts)
        visuals = self.config.logger.visuals
        if visuals and progress.step % self.config.logger.visual_debug_rate == 0:
            self._write_visuals(parts[0])
        return parts

    # ------------------------------------------------------------------------------------------------- watching and saving

    def _log(self, loader: Loader) -> None:
        values = self.meter.read()
        self._stop_if_not_finite(values)
        for step in self.steps:
            values.update(step.learning_rates())
        progress = self.progress
        values.update(self.clock.lap(progress))
        values["peak_memory_mb"] = peak_memory_mb(self.device)
        if loader.bad_files:
            values["bad_files"] = float(len(loader.bad_files))
        first = progress.step <= self.config.logger.print_freq
        self.recorder.train(progress.step, progress.samples, self.clock.seconds(), values)
        if first:
            self.recorder.text("config", (self.folder.path / "config.resolved.yml").read_text(encoding="utf-8"))
        losses = {name: value for name, value in values.items() if "/" in name}
        remaining = (self.settings.niter - progress.step) / max(values["iterations_per_second"], 1e-9)
        LOGGER.info(
            "step %d/%d  %s  %.2f it/s  %.0f samples/s  data wait %.0f %%  %.0f MB  ETA %s",
            progress.step,
            self.settings.niter,
            "  ".join(f"{name} {compact(value)}" for name, value in losses.items()),
            values["iterations_per_second"],
            values["samples_per_second"],
            100 * values["data_wait_share"],
            values["peak_memory_mb"],
            duration(remaining),
        )
        shown = {name: compact(value) for name, value in losses.items() if not name.endswith(("/lr", "/grad_norm"))}
        self.bar.set_postfix_str(", ".join([*(f"{k} {v}" for k, v in shown.items()), self.last_validation]).strip(", "))

    def _stop_if_not_finite(self, values: dict[str, float]) -> None:
        scaled = self.precision.name == "fp16"  # the scaler skips steps whose gradients overflow, and says so in their norm
        bad = [n for n, v in values.items() if not abs(v) < float("inf") and not (scaled and n.endswith("/grad_norm"))]
        if bad:
            self._stop_not_finite(", ".join(bad))

    def _stop_if_weights_not_finite(self) -> None:
        parameters = {name: list(self.networks[name].parameters()) for step in self.steps for name in step.trained}
        bad = [name for name, each in parameters.items() if not torch.stack([p.isfinite().all() for p in each]).all()]
        if bad:
            self._stop_not_finite(f"weights of {', '.join(bad)}")

    def _stop_not_finite(self, what: str) -> NoReturn:
        last = checkpoint.newest(self.folder.checkpoints)
        raise TrainingError(
            f"not finite within the {self.config.logger.print_freq} steps up to {self.progress.step}: {what}. "
            f"Nothing was saved since; the newest checkpoint is {last or 'not there yet'}. "
            "Lower the learning rate, set clip_grad_eps, or look for the operation with anomaly_detection: true"
        )

    def validate(self) -> None:
        """Evaluates on every data set but `train`, and records figures and pictures."""
        self.clock.pause()
        for key, dataset in self.datasets.items():
            if key == "train":
                continue
            name = self.config.datasets[key].name or key
            show = partial(self._show, name, itertools.count())
            left_out: dict[str, str] = {}
            self._record_validation(name, self.evaluator.run(dataset, self.progress.step, show, left_out))
            for path, reason in left_out.items():
                if path not in self._left_out:
                    LOGGER.warning("left out of validation: %s: %s", path, reason)
            self._left_out |= left_out.keys()
        self.clock.resume()

    def _record_validation(self, name: str, means: dict[str, float]) -> None:
        progress = self.progress
        self.recorder.validation(progress.step, progress.samples, self.clock.seconds(), name, means)
        baseline = self.config.eval.baseline
        words = []
        for metric in self.config.eval.metrics:
            if metric not in means:
                continue
            word = f"{metric} {means[metric]:.4f}"
            reference = means.get(f"{baseline}_{metric}")
            if reference is not None:
                word += f" ({baseline} {reference:.4f}, {means[metric] - reference:+.4f})"
            words.append(word)
            best = progress.best.get(f"{name}/{metric}")
            if math.isfinite(means[metric]) and (best is None or means[metric] > best["value"]):
                progress.best[f"{name}/{metric}"] = {"value": means[metric], "step": progress.step}
        LOGGER.info("validation at step %d on %s: %s", progress.step, name, "  ".join(words) or "no metrics")
        if words:
            self.last_validation = "val " + " ".join(words[0].split()[:2])

    def _show(self, name: str, shown: Iterator[int], result: Evaluated) -> None:
        step = self.progress.step
        if self.config.eval.save_images:
            folder = self.folder.validation / name / result.name
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{step}.png", result.output[0])
            for label, picture in (("hq", result.target), ("lq", result.input), (self.config.eval.baseline, result.baseline)):
                if picture is not None and not (folder / f"{label}.png").exists():
                    write_png(folder / f"{label}.png", picture[0])
        if next(shown) < self.config.eval.num_sheets:
            row = [p[0] for p in (result.input, result.baseline, result.output, result.target) if p is not None]
            self.recorder.image(f"{name}/{result.name}", comparison_sheet(row), step)

    def _write_visuals(self, part: MicroBatch) -> None:
        for key in self.config.logger.visuals:
            value = part.state.get(key)
            if not isinstance(value, Tensor) or value.dim() != 4:
                if key not in self._not_shown:
                    LOGGER.warning(
                        "logger.visuals: '%s' is not a batch of images in the state at step %d", key, self.progress.step
                    )
                self._not_shown.add(key)
                continue
            images = (value + 1) / 2 if self.config.logger.reverse_n1_to_1 else value
            folder = self.folder.visuals / key
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{self.progress.step}.png", grid(images))

    def save(self) -> None:
        """Writes a checkpoint of the current step.

        Raises:
            TrainingError: a weight is not finite; nothing is written.
        """
        self.clock.pause()
        self._stop_if_weights_not_finite()
        self.progress.seconds = self.clock.seconds()
        snapshot = checkpoint.Snapshot(
            self.progress.step,
            {name: self.networks[name].state_dict() for step in self.steps for name in step.trained},
            {name: ema.state_dict() for name, ema in self.emas.items()},
            asdict(self.progress),
            {step.name: _step_state(step) for step in self.steps},
        )
        target = checkpoint.save(self.folder.checkpoints, snapshot)
        LOGGER.info("saved %s", target)
        self.clock.resume()

    def _restore(self) -> None:
        named = self.config.path.resume_state
        found = checkpoint.newest(self.folder.checkpoints)
        snapshot = checkpoint.load(found) if found is not None else None
        goes_back = False
        if named is not None and (snapshot is None or snapshot.progress.get("resume_state") != named):
            goes_back, found = True, Path(named)
            snapshot = checkpoint.load(found)
        if found is None or snapshot is None:
            self.folder.forget_after(-1)
            return
        absent = [name for step in self.steps for name in step.trained if name not in snapshot.networks]
        absent += [f"steps.{step.name}" for step in self.steps if step.name not in snapshot.optimizers]
        if absent:
            raise CheckpointError(
                f"checkpoint {found} holds nothing of {', '.join(absent)} (it has: {', '.join(snapshot.networks)}; steps: "
                f"{', '.join(snapshot.optimizers)}). Networks or steps were renamed or added: give them their old names, or "
                "start a new run (--resume never), with 'path.pretrain' for the weights"
            )
        for name, tensors in snapshot.networks.items():
            if name in self.networks:
                load_into(self.networks[name], tensors, source=str(found / f"{name}.safetensors"))
        for name, ema in self.emas.items():  # without one in the checkpoint, the average starts from these weights
            ema.load_state_dict(snapshot.emas.get(name) or self.networks[name].state_dict())
        for step in self.steps:
            _restore_step(step, snapshot.optimizers[step.name])
        self.progress = Progress(**snapshot.progress)
        if goes_back:
            self.progress.resume_state = named
            checkpoint.set_aside_after(self.folder.checkpoints, self.progress.step)
        self.folder.forget_after(self.progress.step)
        LOGGER.info("going on from %s", found)

    # ---------------------------------------------------------------------------------------------------------- bookkeeping

    def _loader(self) -> Loader:
        section, dataset = self.config.datasets["train"], self.datasets["train"]
        return build_loader(
            dataset,
            batch_size=self.batch_size,
            order=SampleOrder(len(dataset), self.config.seed),
            start_position=self.progress.samples,
            n_workers=section.n_workers,
            pin_memory=section.pin_memory,
            prefetch_factor=section.prefetch_factor,
        )

    def _announce(self) -> None:
        config = self.config
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        LOGGER.info("run %s in %s", config.name, self.folder.path)
        numerics = f"{self.precision.name}, {config.memory_format}, torch {torch.__version__}"
        LOGGER.info("device %s (%s), %s", self.device, name, numerics)
        if config.precision == "bf16" and not has_bf16(self.device):
            LOGGER.warning("this device only emulates bfloat16, which is slow; 'precision: auto' takes what it is fast at")
        for key, network in self.networks.items():
            count = sum(p.numel() for p in network.parameters())
            role = "trained" if config.networks[key].trainable else "frozen"
            LOGGER.info("network %s: %s, %s parameters, %s", key, config.networks[key].which_model, f"{count:,}", role)
        for key, dataset in self.datasets.items():
            LOGGER.info("data set %s: %s, %s samples", key, config.datasets[key].mode, f"{len(dataset):,}")
        if len(self.datasets["train"]) < self.batch_size:
            LOGGER.info("a batch of %d takes some samples of the training set more than once", self.batch_size)
        for problem in config.notices:
            if problem.severity == "warning":
                LOGGER.warning("%s", problem)
        translated = sum(problem.severity == "notice" for problem in config.notices)
        if translated:
            LOGGER.info("%d older spellings were translated; `dlas check` lists them", translated)

    def _report_end(self, loader: Loader) -> None:
        best = ", ".join(f"{name} {each['value']:.4f} at step {each['step']:.0f}" for name, each in self.progress.best.items())
        LOGGER.info(
            "step %d after %s%s", self.progress.step, duration(self.progress.seconds), f"; best: {best}" if best else ""
        )
        if loader.bad_files:
            listing = "\n".join(f"  {path}: {reason}" for path, reason in sorted(loader.bad_files.items()))
            LOGGER.warning("%d unusable files were left out:\n%s", len(loader.bad_files), listing)


def _step_state(step: TrainingStep) -> dict[str, Any]:
    return {
        "class": type(step.optimizer).__name__,
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict() if step.scaler is not None else None,
        "schedule": step.schedule.state_dict(),
        "losses": loss_state(step),
    }


def _restore_step(step: TrainingStep, state: dict[str, Any]) -> None:
    saved, present = state.get("class"), type(step.optimizer).__name__
    if saved not in (None, present):
        raise CheckpointError(
            f"step '{step.name}': the checkpoint holds the state of {saved}, and the optimiser is now {present}; go back to "
            "it, or start a new run (--resume never), with 'path.pretrain' for the weights"
        )
    checkpoint.restore_optimizer(step.optimizer, state["optimizer"])
    step.schedule.load_state_dict(state["schedule"])
    restore_loss_state(step, state.get("losses"))
    if step.scaler is not None and state["scaler"] is not None:
        step.scaler.load_state_dict(state["scaler"])


class _Clock:
    """Where the time goes: waiting for data, working, or neither (validation and saving count as paused)."""

    def __init__(self, progress: Progress) -> None:
        self._earlier = progress.seconds
        self._start = time.perf_counter()
        self._mark = self._start
        self._wait = 0.0
        self._work = 0.0
        self._lap_step, self._lap_samples = progress.step, progress.samples

    def waiting(self) -> None:
        now = time.perf_counter()
        self._work += now - self._mark
        self._mark = now

    def working(self) -> None:
        now = time.perf_counter()
        self._wait += now - self._mark
        self._mark = now

    def pause(self) -> None:
        self.waiting()

    def resume(self) -> None:
        self._mark = time.perf_counter()

    def seconds(self) -> float:
        """Time of the whole run, earlier sittings included."""
        return self._earlier + time.perf_counter() - self._start

    def lap(self, progress: Progress) -> dict[str, float]:
        """Rates since the last call."""
        self.pause()
        busy = max(self._wait + self._work, 1e-9)
        values = {
            "iterations_per_second": (progress.step - self._lap_step) / busy,
            "samples_per_second": (progress.samples - self._lap_samples) / busy,
            "data_wait_share": self._wait / busy,
        }
        self._wait = self._work = 0.0
        self._lap_step, self._lap_samples = progress.step, progress.samples
        return values
