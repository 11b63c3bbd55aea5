"""How pictures are evaluated, against the networks and weights that there are."""

from __future__ import annotations

from dlas.config.problems import Problem
from dlas.config.schema import Config
from dlas.config.wiring.components import at, chosen, key_at


def check_evaluation(config: Config, problems: list[Problem]) -> None:
    """Notes tiles and ensembles of what is no plain call of a network, and averages that are not kept."""
    section = config.eval
    if section is None or config.steps is None:
        return
    if section.weights == "both" and config.train is not None and config.train.ema is not None and not config.train.ema.enabled:
        what = "no average is kept: 'train.ema.enabled' is false"
        at(section, "weights", problems).note(what, "take 'raw', or keep an average")
    for key in ("tile", "self_ensemble"):
        fault = _fault(config) if chosen(section, key) else None
        if fault is not None:
            key_at(section, key, problems).note(f"needs a network that makes one picture of one picture: {fault}", "remove it")


def _fault(config: Config) -> str | None:
    key = config.eval.output_state
    if any(step.damaged for step in (config.steps or {}).values()):
        return None
    injector = config.output_injector()
    if injector is None:
        return f"no injector writes '{key}' in evaluation"
    if injector.type != "generator":
        return f"'{key}' is written by an injector of the type '{injector.type}', not 'generator'"
    options = injector.options
    inputs = options.get("in")
    if not isinstance(inputs, str) and not (isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], str)):
        return f"the one that writes '{key}' is given {inputs}"
    if isinstance(options.get("out"), list) and len(options["out"]) > 1:
        return f"the one that writes '{key}' gives {options['out']}"
    used = [name for name in ("method", "args") if options.get(name)]
    return f"the one that writes '{key}' is called with '{used[0]}'" if used else None
