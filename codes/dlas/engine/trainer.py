"""The training loop."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, Literal, NoReturn

import torch

from dlas.config import Config
from dlas.config.schema import StepConfig
from dlas.context import mix_seed
from dlas.data.loader import Loader, build_loader
from dlas.data.sampler import SampleOrder
from dlas.engine import batch_sizes, checkpoint
from dlas.engine.averages import Averages
from dlas.engine.best import BestFigures
from dlas.engine.build import build_dataset, build_networks
from dlas.engine.checkpoint_writer import CheckpointWriter
from dlas.engine.compiling import compile_networks
from dlas.engine.crash import CrashReporter
from dlas.engine.cutting import Cutting
from dlas.engine.device import apply_numeric_settings, choose_device, memory_format, seed_everything
from dlas.engine.distributed.create import create_strategy
from dlas.engine.encoders import check_encoders
from dlas.engine.evaluate import Evaluator
from dlas.engine.flops import Work, arithmetic_of
from dlas.engine.followers import FollowerFolder, FollowerRecorder, FollowerWriter
from dlas.engine.freezing import freezes
from dlas.engine.health import BadUpdate, Decision, HealthMonitor
from dlas.engine.host_memory import keep_freed_memory
from dlas.engine.interrupt import Stopping, StopRequest
from dlas.engine.iteration import IterationRunner
from dlas.engine.memory_advice import advising, warn_if_too_large
from dlas.engine.meter import Meter
from dlas.engine.microbatch import MicroBatch
from dlas.engine.out_of_memory import explained
from dlas.engine.placement import is_placed
from dlas.engine.precision import Precision, has_bf16
from dlas.engine.profiling import RunProfiler
from dlas.engine.progress import Progress
from dlas.engine.run_state import RunState
from dlas.engine.stage import STAGE
from dlas.engine.step import TrainingStep
from dlas.engine.throughput import Throughput
from dlas.engine.validation import Validation
from dlas.engine.visuals import Visuals
from dlas.engine.watchdog import Watchdog
from dlas.errors import ConfigurationError, DataError, TrainingError, printable
from dlas.observe.console import LOGGER, LogFile, compact, duration, progress_bar
from dlas.observe.recorder import Recorder
from dlas.observe.run_folder import RunFolder
from dlas.optim.schedules import build_schedule

ADVICE = "Lower the learning rate, set clip_grad_eps, or look for the operation with anomaly_detection: true"


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
        if self.device.type == "cpu":
            keep_freed_memory()
        seed_everything(mix_seed(config.seed, "weights"), self.device)
        self.precision = Precision(config.precision, self.device)
        self.strategy = create_strategy(config, self.device)
        self.ranks = self.strategy.ranks
        folder = RunFolder if self.ranks.main else FollowerFolder
        self.folder = folder(Path(config.path.experiments) / config.name)
        self.resume = resume
        self.source = source
        self.datasets = {key: build_dataset(config, key) for key in config.datasets}
        self.batch_size = config.datasets["train"].batch_size
        self.share = self.batch_size // self.ranks.world_size  # of this process
        if self.share < self.settings.mega_batch_factor:
            raise ConfigurationError(
                f"a batch of {self.share} cannot be cut into {self.settings.mega_batch_factor} micro-batches; "
                "raise datasets.train.batch_size or lower train.mega_batch_factor"
            )
        self.networks = build_networks(config, self.device)
        trained = [name for section in config.steps.values() for name in section.trained]
        self.strategy.spread({name: self.networks[name] for name in trained})
        self.compilation = compile_networks(config, self.networks, self.device, self.strategy.whole)
        self.meter = Meter(self.ranks)
        self.steps = [
            TrainingStep(name, section, self.networks, self.precision, self.device, self.meter)
            for name, section in config.steps.items()
        ]
        for step, section in zip(self.steps, config.steps.values(), strict=True):
            step.exchange = self.strategy.exchange(step.name, step.named_parameters(), step.optimizer, step.clip_norm)
            step.any_rank = self.strategy.any_rank
            self._set_schedule(step, section)
            for each in step.losses:
                if step.runs.opens(self.settings.niter) and each.gate.opens(self.settings.niter):
                    each.loss.prepare(self.device)
        for name in self.networks.keys() - set(trained):
            self.networks[name].requires_grad_(False)
        with explained("the averages of the weights", "They take as much as the networks: write 'train.ema.enabled: false'"):
            averaged = {name: self.networks[name] for name in trained}
            self.averages = Averages(self.settings.ema, averaged, self.batch_size)
        self.cutting = Cutting.of(self.settings)
        batch_sizes.equip(config, self.steps, self.networks, self.cutting, self.strategy, self.device)
        health = {name: section.health or self.settings.health for name, section in config.steps.items()}
        apart = not self.strategy.whole or any(is_placed(self.networks[name]) for name in trained)
        self.health = HealthMonitor(self.steps, health, self.networks, self.meter, self.device, apart=apart)
        self.crashes = CrashReporter(config, self.folder.path, self.strategy)
        countable = self.ranks.main and self.strategy.whole  # only the first process logs
        file = arithmetic_of(config) if config.compile else ""
        self.work = Work(self.compilation.plainly, file) if config.logger.efficiency and countable else None
        self.runner = IterationRunner(
            self.steps,
            self.networks,
            self.averages,
            seed=config.seed,
            cutting=self.cutting,
            device=self.device,
            layout=self.layout,
            health=self.health,
            on_error=self.crashes.report_error,
            freezes=freezes(config, self.networks),
            strategy=self.strategy,
            work=self.work,
            waiting=config.sync_debug_mode,
        )
        self.progress = Progress()
        self.best = BestFigures(config)
        self.state = RunState(
            config, self.networks, self.steps, self.averages, self.meter, self.health, self.strategy, self.device
        )
        evaluator = Evaluator(config, self.networks, self.averages.main, self.device, self.strategy.evaluating)
        self.validation = Validation(config, self.datasets, evaluator, self.folder, self.best, self.ranks)
        self.writer = self._writer()
        self._saved = False  # whether there is a checkpoint of this very state
        self._prepared = False
        self.visuals = Visuals(self.config.logger, self.folder)
        self.profiler = RunProfiler(config.profile, self.folder.path, self.device, self.ranks.rank)

    def _set_schedule(self, step: TrainingStep, section: StepConfig) -> None:
        for group in step.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        scheme = section.lr_scheme or self.settings.lr_scheme
        options = {"type": scheme.type, **scheme.options} if scheme else {"type": "constant"}
        step.schedule = build_schedule(options, step.optimizer, self.settings.niter, warmup_iter=self.settings.warmup_iter)

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
        self.ranks.wait()
        with LogFile(self.folder.log), StopRequest() as stop:
            if aside is not None:
                LOGGER.info("the older run was set aside: %s", aside)
            self._restore()
            check_encoders(self.datasets, self.networks, [name for step in self.steps for name in step.trained])
            self.folder.describe(self.config, self.source, str(self.device))
            self.folder.claim()
            self._announce()
            warn_if_too_large(self.config, self.networks, self.device)
            if self.progress.step >= self.settings.niter and not self._owes_validation():
                LOGGER.info(
                    "this run is complete at step %d; raise train.niter to go on, or start anew with --resume never",
                    self.progress.step,
                )
                return RunResult(self.progress.step, self.folder.path)
            self.recorder = self._recorder()
            try:
                with (
                    self._loader() as loader,
                    self.writer,
                    self._watchdog(loader),
                    advising(self.config, self.networks, self.device),
                ):
                    self._loop(loader, stop)
            finally:
                self.recorder.close()
            if stop.signal is not None:
                LOGGER.info(
                    "stopped by %s at step %d; the same command goes on from there", stop.signal.name, self.progress.step
                )
            return RunResult(self.progress.step, self.folder.path, stop.signal)

    def _recorder(self) -> Recorder:
        if not self.ranks.main:
            return FollowerRecorder()
        tensorboard = self.folder.tensorboard if self.config.logger.tensorboard else None
        return Recorder(self.folder.metrics, tensorboard, self.progress.step, self.folder.check)

    def _loop(self, loader: Loader, stop: StopRequest) -> None:
        throughput = Throughput(self.config, self.progress, self.device, self.precision, self.work)
        bar = progress_bar(self.settings.niter, self.progress.step, shown=self.ranks.main)
        with closing(throughput) as self.throughput, closing(self.profiler), bar as self.bar:
            started = self.progress.step
            self._prepare_to_roll_back()
            try:
                self.advance(loader, self.settings.niter, stop)
            except DataError:
                if self.ranks.many:
                    raise  # the others are in the midst of something else
                # A complete step lies behind. A signal to the whole process group ends the workers too; it asks to stop.
                self._attend_to_health(wait=True)
                if self.progress.step > started:
                    self.save()
                if stop.signal is None:
                    raise
                return
            self._attend_to_health(wait=True)
            if not stop.agreed(self.ranks):
                self.validate(stop)
            self.save()
            self.writer.wait()
        self._report_end()

    def advance(self, loader: Loader, target: int, stop: StopRequest) -> None:
        """Iterates until `target` completed iterations or a request to stop, logging, validating and saving on the way."""
        progress, logger = self.progress, self.config.logger
        if progress.step < target and self._owes_validation():
            self.validate(stop)
        while progress.step < target and (self.ranks.many or stop.signal is None):  # several stop together, further down
            self.profiler.before_iteration()
            STAGE.enter("data")
            try:
                with stop.ends_waiting() if not self.ranks.many else nullcontext():
                    batch = next(loader)
            except Stopping:
                break
            if self.ranks.many:
                STAGE.enter("collective")
            if stop.agreed(self.ranks):
                break
            log = (progress.step + 1) % logger.print_freq == 0 or progress.step + 1 == target
            self.iterate(batch, log_gradients=log)
            self.writer.poll()
            self.bar.update()
            self.profiler.after_iteration(progress.step)
            validates = self._owes_validation() and progress.step < target
            saves = (progress.step % logger.save_checkpoint_freq == 0 or self._at_trough()) and progress.step < target
            if self._attend_to_health(wait=log or validates or saves or self.averages.due(progress.step)):
                progress = self.progress  # of the checkpoint that the run went back to
                continue
            if self.averages.due(progress.step):
                self.averages.write_snapshot(self.folder.path, progress.step, self.strategy)
            if log:
                self._log()
            if validates and not stop.agreed(self.ranks):
                self.validate(stop)
            if saves:
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
        self.compilation.begin_iteration()
        parts = self.runner.run(batch, progress.step, log_gradients)
        self.compilation.end_iteration()
        progress.micro_batch_size = self.cutting.found
        progress.step += 1
        self._saved = False
        progress.samples += sum(len(part.positions) for part in parts) * self.ranks.world_size
        if self.visuals.due(progress.step) and not self.health.bad_update(wait=True) and self.ranks.main:
            STAGE.enter("logging")
            self.visuals.write(parts[0].state, progress.step, self.recorder)
        return parts

    # ------------------------------------------------------------------------------------------------- watching and saving

    def _log(self) -> None:
        STAGE.enter("logging")
        values = self.meter.read()
        values.update(self.health.window())
        values.update(self.compilation.figures())
        self._prepare_saving()
        for step in self.steps:
            values.update(step.learning_rates())
            values.update(batch_sizes.read(step))
        progress = self.progress
        seconds = self.throughput.ledger.seconds()
        values.update(self.throughput.values(progress))
        if self.cutting.automatic:
            values["micro_batch_size"] = float(self.cutting.size(self.share))
        if progress.bad_files:
            values["bad_files"] = float(len(progress.bad_files))
        if progress.rollbacks:
            values["rollbacks"] = float(progress.rollbacks)
        first = progress.step <= self.config.logger.print_freq
        self.recorder.train(progress.step, progress.samples, seconds, values)
        if first:
            resolved = self.folder.path / "config.resolved.yml"
            self.folder.dispensable(
                "TensorBoard's copy of the file", lambda: self.recorder.text("config", resolved.read_text(encoding="utf-8"))
            )
        losses = {name: value for name, value in values.items() if "/" in name and not name.startswith("time/")}
        remaining = (self.settings.niter - progress.step) / max(values["iterations_per_second"], 1e-9)
        LOGGER.info(
            "step %d/%d  %s  %.2f it/s  %.0f samples/s%s  data wait %.0f %%  %.0f MB  ETA %s",
            progress.step,
            self.settings.niter,
            "  ".join(f"{name} {compact(value)}" for name, value in losses.items()),
            values["iterations_per_second"],
            values["samples_per_second"],
            f"  {compact(values['tflops'])} TFLOP/s ({100 * values['mfu']:.0f} %)" if "mfu" in values else "",
            100 * values["data_wait_share"],
            values["peak_memory_mb"],
            duration(remaining),
        )
        shown = {name: compact(value) for name, value in losses.items() if not name.endswith(("/lr", "/grad_norm"))}
        self.bar.set_postfix_str(", ".join([*(f"{k} {v}" for k, v in shown.items()), self.validation.words]).strip(", "))

    def _kept(self) -> str:
        return f"Nothing was saved since; the newest checkpoint is {self.writer.newest or 'not there yet'}."

    # -------------------------------------------------------------------------------------------------------- bad updates

    def on_bad_update(self, bad: BadUpdate) -> str:
        """Called for every bad update, before anything follows from it; returns what more there is to say of it."""
        if bad.kind == "spike":  # all of it is finite, so there is nothing to look for
            return ""
        STAGE.enter("diagnosis", bad.step.name)
        with self.compilation.plainly():
            found = self.crashes.report_bad_update(bad.step, bad.parts, bad.contexts)
        return f"cause: {found.cause.name}" if found is not None and found.cause is not None else ""

    def _attend_to_health(self, wait: bool) -> bool:
        """Does what the policies say about a bad update, if there was one; True if the run went back to a checkpoint."""
        bad = self.health.bad_update(wait)
        if bad is None:
            return False
        more = self.on_bad_update(bad)
        decision = self.health.decide(bad, self.progress.rollbacks)
        self.health.tell(bad, decision, more)
        self.health.go_on()
        if decision.action == "rollback":
            self._roll_back()
        elif decision.action == "stop":
            self._stop(bad, decision)
        return decision.action == "rollback"

    def _stop(self, bad: BadUpdate, decision: Decision) -> NoReturn:
        if decision.weights_good:
            self.save()
            self.writer.wait()
            kept = "The state before it was saved, and the same command goes on from there."
        else:
            self.writer.wait(patient=False)
            kept = self._kept()
        raise TrainingError(f"{bad.describe()}: {decision.why}. {kept} {ADVICE}")

    def _prepare_to_roll_back(self) -> None:
        """Where a policy may go back, there is a checkpoint to go back to, of this very state."""
        policies = {policy for each in self.health.settings.values() for policy in (each.non_finite, each.spike)}
        if "rollback" not in policies:
            return
        newest = self._newest_checkpoint()
        if newest is None or newest.name != str(self.progress.step):
            self.save()
            self.writer.wait()

    def _roll_back(self) -> None:
        """Back to the newest checkpoint; the data go on from here, so that what made an update bad is not met again."""
        STAGE.enter("checkpoint")
        self.writer.wait()
        found = self._newest_checkpoint()
        if found is None:
            raise TrainingError(f"there is no undamaged checkpoint left to go back to in {self.folder.checkpoints}")
        samples, rollbacks = self.progress.samples, self.progress.rollbacks + 1
        for step, section in zip(self.steps, self.config.steps.values(), strict=True):
            self._set_schedule(step, section)  # some of torch's cannot go back
        self._take_over(self.state.load(found), found)
        self.progress.samples, self.progress.rollbacks = samples, rollbacks
        self.recorder.close()
        self.folder.forget_after(self.progress.step, validated=self.progress.validated == self.progress.step)
        self.recorder = self._recorder()
        self.throughput.ledger.jump(self.progress)
        self.bar.update(self.progress.step - self.bar.n)
        LOGGER.warning("back at step %d, from %s; the data go on behind sample %d", self.progress.step, found, samples)

    def _newest_checkpoint(self) -> Path | None:
        return self.ranks.from_main(checkpoint.newest(self.folder.checkpoints) if self.ranks.main else None)

    def _owes_validation(self) -> bool:
        step, val_freq, niter = self.progress.step, self.settings.val_freq, self.settings.niter
        due = step == niter or bool(val_freq and step % val_freq == 0) or self._at_trough()
        return self.progress.validated < step and due

    def _at_trough(self) -> bool:
        return any(each.schedule.is_trough(self.progress.step) for each in self.steps)

    def validate(self, stop: StopRequest) -> None:
        """Evaluates on every data set but `train`, and records figures and pictures; a request to stop puts it off."""
        STAGE.enter("eval")
        try:
            with self.compilation.evaluating():
                self.validation.run(self.progress, self.recorder, self.throughput.ledger.seconds(), stop)
        except Stopping:
            LOGGER.info("the validation at step %d is put off until the run goes on", self.progress.step)
        except TrainingError:  # the networks are as they were: what was trained is worth keeping
            if not self.ranks.many:  # others may be in the midst of something else
                self.save()
            raise
        else:
            self._saved = False
            for step in self.steps:
                step.schedule.observe(self.validation.figures)
            if self.best.step(self.progress.best) == self.progress.step:
                self.save()

    def save(self) -> None:
        """Saves the current step, in the background unless `checkpoints.background` is off; does nothing where that is done.

        Raises:
            TrainingError: a weight was not finite.
            CheckpointError: an earlier checkpoint could not be written.
        """
        if self._saved:
            return
        STAGE.enter("checkpoint")
        self.recorder.flush()
        self.writer.save(self._snapshot(), self.best.step(self.progress.best))
        self._saved = True

    def _prepare_saving(self) -> None:
        """At the first log line of a sitting: by then the optimisers have their state."""
        if not self._prepared and self.progress.step < self.settings.niter:
            every = self.config.logger.save_checkpoint_freq
            first = self.progress.step // every * every + every
            self.writer.prepare(self._snapshot(), [*range(first, self.settings.niter, every), self.settings.niter])
        self._prepared = True

    def _snapshot(self) -> checkpoint.Snapshot:
        self.progress.seconds = self.throughput.ledger.seconds()
        if self.work is not None and self.config.compile:  # else a sitting counts anew, which changes nothing
            self.progress.work = self.work.state_dict()
        return self.state.snapshot(self.progress)

    def _flush_rows(self) -> None:
        self.recorder.sync()

    def _writer(self) -> CheckpointWriter:
        named = self._named_checkpoints()
        if self.config.checkpoints.format == "sharded":
            from dlas.engine.sharded_writer import ShardedWriter  # torch.distributed.checkpoint takes its time

            return ShardedWriter(self.folder, self.config, self.ranks, self._flush_rows, named)
        kind = CheckpointWriter if self.ranks.main else FollowerWriter
        return kind(self.folder, self.config.checkpoints, self._flush_rows, named)

    def _named_checkpoints(self) -> frozenset[Path]:
        named = self.config.path.resume_state
        return frozenset([Path(named)] if named is not None else [])

    def _restore(self) -> None:
        found, goes_back = self.ranks.from_main(self._find_start() if self.ranks.main else (None, False))
        if found is None:
            self.folder.forget_after(-1)
            return
        snapshot = self.state.load(found)
        self.state.check(snapshot, found)
        self._take_over(snapshot, found)
        if goes_back:
            self.progress.resume_state = self.config.path.resume_state
        if self.ranks.main:
            self._settle_on(found, goes_back)
        self._saved = not goes_back
        self.folder.forget_after(self.progress.step, validated=self.progress.validated == self.progress.step)
        LOGGER.info("going on from %s", found)

    def _find_start(self) -> tuple[Path | None, bool]:
        """The checkpoint to go on from, if there is one, and whether it is `path.resume_state`, met for the first time."""
        named = self.config.path.resume_state
        checkpoint.tidy(self.folder.checkpoints)
        self.writer.newest = found = checkpoint.newest(self.folder.checkpoints)
        if named is not None and (found is None or checkpoint.load_progress(found).get("resume_state") != named):
            return Path(named), True
        return found, False

    def _settle_on(self, found: Path, goes_back: bool) -> None:
        if goes_back:
            checkpoint.set_aside_after(self.folder.checkpoints, self.progress.step)
        if found.parent == self.folder.checkpoints:
            checkpoint.point_to(found)
            self.writer.settle(self.best.step(self.progress.best))

    def _take_over(self, snapshot: checkpoint.Snapshot, found: Path) -> None:
        """Networks, averages, steps and progress as they were."""
        self.progress = self.state.take_over(snapshot, found)
        if self.work is not None:
            self.work.load_state_dict(self.progress.work)
        self.cutting.resume(self.progress.micro_batch_size)

    # ---------------------------------------------------------------------------------------------------------- bookkeeping

    def _loader(self) -> Loader:
        section, dataset = self.config.datasets["train"], self.datasets["train"]
        return build_loader(
            dataset,
            batch_size=self.batch_size,
            order=SampleOrder(
                len(dataset),
                self.config.seed,
                buckets=dataset.buckets(),
                batch_size=self.batch_size,
                multiple=self.ranks.world_size,
            ),
            start_position=self.progress.samples,
            n_workers=section.n_workers,
            pin_memory=section.pin_memory,
            prefetch_factor=section.prefetch_factor,
            bad_files=self.progress.bad_files,
            world_size=self.ranks.world_size,
            rank=self.ranks.rank,
        )

    def _watchdog(self, loader: Loader) -> Watchdog:
        return Watchdog(self.settings.watchdog, self.folder.log, lambda: self.progress.step, loader.reading)

    def _announce(self) -> None:
        config = self.config
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        LOGGER.info("run %s in %s", config.name, self.folder.path)
        numerics = f"{self.precision.name}, {config.memory_format}, torch {torch.__version__}"
        LOGGER.info("device %s (%s), %s", self.device, name, numerics)
        if self.ranks.many:
            LOGGER.info("%d processes, %s", self.ranks.world_size, type(self.strategy).__name__)
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

    def _report_end(self) -> None:
        best = ", ".join(f"{name} {each['value']:.4f} at step {each['step']:.0f}" for name, each in self.progress.best.items())
        LOGGER.info(
            "step %d after %s%s", self.progress.step, duration(self.progress.seconds), f"; best: {best}" if best else ""
        )
        self.throughput.report()
        for line in self.compilation.summary():
            LOGGER.info("%s", line)
        for line in batch_sizes.summary(self.steps):
            LOGGER.info("%s", line)
        for line in self.health.summary():
            LOGGER.warning("%s", line)
        if self.progress.bad_files:
            listing = "\n".join(f"  {printable(path)}: {reason}" for path, reason in sorted(self.progress.bad_files.items()))
            LOGGER.warning("%d unusable files were left out:\n%s", len(self.progress.bad_files), listing)
