"""Numbers that must fit one another: gates and schedules against the length of the run, batches against their parts."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dlas.config.problems import Problem
from dlas.config.schema import Config, InjectorConfig, ScheduleConfig, Section, StepConfig
from dlas.config.wiring.components import at, chosen, key_at
from dlas.config.wiring.gates import Window, window_of

_MILESTONES = ("gen_lr_steps", "milestones", "restarts")
_WIDEST = 12**-0.5  # where the exponent of a power-function average becomes 0
_DURATIONS = ("total_steps", "warmup", "warmup_steps")


def check_limits(config: Config, problems: list[Problem], training: bool) -> None:
    """Notes gates that never open, and with `training` what does not fit the length of the run or the batch."""
    niter = config.train.niter if training and config.train else None
    for step in (config.steps or {}).values():
        _check_gate(step, Window(), niter, problems)
        window = window_of(step, every=False)
        for injector in (step.injectors or {}).values():
            _check_gate(injector, window, niter, problems)
        for loss in (step.losses or {}).values():
            _check_gate(loss, window & Window(every=step.every or 1), niter, problems)
    for section in (config.eval, config.encode):
        for injector in (section.injectors or {}).values() if section else ():
            _check_eval_injector(injector, problems)
    if training:
        _check_batch(config, problems)
        _check_averages(config, problems)
        _check_validation(config, problems)
    if niter is not None:
        for scheme in _schedules(config):
            _check_schedule(scheme, niter, problems)
            _check_plateau(scheme, config, problems)
        _check_frequencies(config, niter, problems)


def processes() -> int:
    """How many torchrun has started; 1 without it."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdecimal() and int(count) > 0 else 1


# ------------------------------------------------------------------------------------------------------------------ gates


def _check_gate(section: Section, outer: Window, niter: int | None, problems: list[Problem]) -> None:
    if isinstance(section, InjectorConfig) and section.train and section.eval:
        what = "'train: true' and 'eval: true' mean training only and evaluation only: together, never"
        key_at(section, "eval", problems).note(what, "remove both to run it always")
        return
    own = window_of(section)
    name = "after" if "after" in section.given else "before" if "before" in section.given else "every"
    if own.first is None:
        key_at(section, name, problems).note(f"never on: {_words(section)}", "'after' must be below 'before'")
    elif outer.first is not None and (own & outer).first is None:
        # The step may be gated where this is not.
        key_at(section, name, problems).note(f"never on: its step is on {outer} and this {own}", "let the two overlap")
    elif niter is not None and (own & Window(before=niter)).first is None:
        what = f"never on in this run, which ends after iteration {niter - 1} ('train.niter: {niter}')"
        key_at(section, name, problems).note(what, "lower 'after' or raise 'niter'", "warning")


def _words(section: Section) -> str:
    return " and ".join(f"'{name}: {section.given[name]}'" for name in ("after", "before", "every") if name in section.given)


def _check_eval_injector(section: InjectorConfig, problems: list[Problem]) -> None:
    if section.train:
        what = f"an injector of '{section.yaml_path.partition('.')[0]}' with 'train: true' never runs"
        key_at(section, "train", problems).note(what, "remove 'train', or the injector")
    for key in ("after", "before", "every"):
        if key in section.given:
            key_at(section, key, problems).note("has no effect: evaluation does not look at gates", "remove it", "warning")


# ------------------------------------------------------------------------------------------------------------------ batch


def _check_batch(config: Config, problems: list[Problem]) -> None:
    dataset = (config.datasets or {}).get("train")
    if dataset is None or not dataset.batch_size:
        return
    world = processes()
    if dataset.batch_size % world:
        what = f"a batch of {dataset.batch_size} cannot be shared evenly by {world} processes (WORLD_SIZE)"
        nearest = -(-dataset.batch_size // world) * world
        at(dataset, "batch_size", problems).note(what, f"take a multiple of {world}, for instance {nearest}")
        return
    share = dataset.batch_size // world
    factor = config.train.mega_batch_factor if config.train else None
    if factor is not None and share < factor:
        assert config.train is not None
        each = "" if world == 1 else f" on each of {world} processes"
        at(config.train, "mega_batch_factor", problems).note(
            f"a batch of {share}{each} cannot be cut into {factor} micro-batches",
            f"raise 'datasets.train.batch_size' ({at(dataset, 'batch_size', problems).mark}) or lower this",
        )
        return
    size = config.train.micro_batch_size if config.train else None
    if config.train is not None and isinstance(size, int) and factor is not None and factor > 1:
        pieces = -(-share // size)
        if pieces != factor:
            at(config.train, "micro_batch_size", problems).note(
                f"cuts a batch of {share} into {pieces} micro-batches, and 'mega_batch_factor' into {factor}",
                f"remove 'mega_batch_factor' ({at(config.train, 'mega_batch_factor', problems).mark})",
            )


# ------------------------------------------------------------------------------------------------------------- length of run


def _schedules(config: Config) -> Iterator[ScheduleConfig]:
    if config.train and config.train.lr_scheme:
        yield config.train.lr_scheme
    for step in (config.steps or {}).values():
        if isinstance(step, StepConfig) and step.lr_scheme:
            yield step.lr_scheme


def _check_plateau(scheme: ScheduleConfig, config: Config, problems: list[Problem]) -> None:
    metric = scheme.options.get("metric")
    if scheme.type == "plateau" and config.eval and isinstance(metric, str) and metric not in config.eval.figures:
        there = ", ".join(config.eval.figures) or "none"
        at(scheme, "metric", problems).note(f"'{metric}' is not measured; there are: {there}", "add it to 'eval.metrics'")


def _check_schedule(scheme: ScheduleConfig, niter: int, problems: list[Problem]) -> None:
    for name in _MILESTONES:
        steps, written = scheme.options.get(name), scheme.given.get(name)
        if not isinstance(steps, list) or not isinstance(written, list):
            continue
        for position, step in enumerate(written):
            if isinstance(step, int | float) and step >= niter:
                place = at(scheme, name, problems).item(written, position)
                place.note(f"never comes: the run ends after {niter} iterations", "lower it or raise 'train.niter'", "warning")
    for name in _DURATIONS:
        steps = scheme.options.get(name)
        if isinstance(steps, int) and not isinstance(steps, bool) and steps > niter:
            what = f"longer than the run, which has {niter} iterations"
            fix = "leave it out: it is the length of the run by default" if name == "total_steps" else "lower it"
            at(scheme, name, problems).note(what, fix, "warning")


def _check_averages(config: Config, problems: list[Problem]) -> None:
    ema = config.train.ema if config.train else None
    if ema is None:
        return
    what = "a power-function average spans less than 0.288 of the run"
    if isinstance(ema.width, float) and ema.width >= _WIDEST:
        at(ema, "width", problems).note(f"{ema.width:g} is too wide: {what}", "0.25 averages nearly all of it")
    if ema.post_hoc is not None:
        for width in ema.post_hoc.widths or ():
            if isinstance(width, float) and width >= _WIDEST:
                at(ema.post_hoc, "widths", problems).note(f"{width:g} is too wide: {what}", "EDM2 keeps 0.05 and 0.1")
    for other in ("rate", "warmup"):
        if ema.width is not None and other in ema.given:
            key_at(ema, other, problems).note(f"has no effect beside 'width: {ema.width}'", "remove one of them", "warning")


def _check_frequencies(config: Config, niter: int, problems: list[Problem]) -> None:
    assert config.train is not None
    never = f"more than the run's {niter} iterations"
    _warn_beyond(config.train, "val_freq", niter, f"{never}: it is validated at the end only", problems)
    _warn_beyond(config.train, "warmup_iter", niter, f"{never}: the full learning rate is never reached", problems)
    if config.logger is not None:
        _warn_beyond(config.logger, "print_freq", niter, f"{never}: there is one log line, at the end", problems)
        _warn_beyond(config.logger, "save_checkpoint_freq", niter, f"{never}: there is one checkpoint, at the end", problems)
        if config.logger.visuals or config.logger.audio:
            _warn_beyond(config.logger, "visual_debug_rate", niter, f"{never}: no picture is ever written", problems)


def _warn_beyond(section: Section, key: str, niter: int, message: str, problems: list[Problem]) -> None:
    if chosen(section, key) and getattr(section, key) > niter:
        at(section, key, problems).note(message, "lower it", "warning")


def _check_validation(config: Config, problems: list[Problem]) -> None:
    written = config.given.get("datasets", {})
    alone = isinstance(written, dict) and not [name for name in written if name != "train"]
    if config.train and config.train.val_freq and alone:
        what = "there is no data set to validate on"
        at(config.train, "val_freq", problems).note(what, "add one under 'datasets:' (any name but 'train')", "warning")
    logger = config.logger
    if logger is not None and logger.visuals == [] and not logger.audio and chosen(logger, "visual_debug_rate"):
        key_at(logger, "visual_debug_rate", problems).note(
            "has no effect without 'visuals' or 'audio'", "name state keys there", "warning"
        )
    section = config.eval
    if section is not None and section.metrics == [] and chosen(section, "crop_border"):
        key_at(section, "crop_border", problems).note("has no effect without 'metrics'", "remove it", "warning")
