"""What is kept of checkpoints, against what is measured."""

from __future__ import annotations

from dlas.config.problems import Problem
from dlas.config.schema import Config
from dlas.config.wiring.components import at, chosen, key_at
from dlas.registry import nearest


def check_checkpoints(config: Config, problems: list[Problem], training: bool) -> None:
    """Notes a best checkpoint that nothing decides on, and settings without effect."""
    section = config.checkpoints
    if section is None or not training:
        return
    if chosen(section, "keep_every") and section.keep_every is not None and section.keep_last is None:
        key_at(section, "keep_every", problems).note("has no effect: all are kept", "set 'keep_last', too", "warning")
    best = section.keep_best
    if best is None or config.eval is None:
        return
    metrics = config.eval.figures
    if best.metric is not None and best.metric not in metrics:
        fix = f"take one of: {', '.join(metrics)}" if metrics else "name it there"
        at(best, "metric", problems).note(f"'{best.metric}' is not measured: it is not in eval.metrics", fix)
    sets = [each.name or key for key, each in (config.datasets or {}).items() if key != "train"]
    if not sets:
        what = "no checkpoint is ever the best one: there is no data set to validate on"
        key_at(section, "keep_best", problems).note(what, "add one under 'datasets:' (any name but 'train')")
    elif best.set is not None and best.set not in sets:
        close = nearest(best.set, sets)
        fix = f"did you mean '{close}'?" if close else f"validated on: {', '.join(sets)}"
        at(best, "set", problems).note(f"no data set to validate on has the name '{best.set}'", fix)
    elif config.train is not None and config.train.val_freq == 0:
        what = "the run is validated at its end only ('train.val_freq'), so the last checkpoint is the best"
        key_at(section, "keep_best", problems).note(what, "set 'train.val_freq'", "warning")
