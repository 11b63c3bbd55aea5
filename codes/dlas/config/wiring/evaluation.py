"""How pictures are evaluated, against the networks and weights that there are."""

from __future__ import annotations

from dlas.config.problems import Problem
from dlas.config.schema import Config, EvalConfig
from dlas.config.wiring.components import at, chosen, key_at


def check_evaluation(config: Config, problems: list[Problem]) -> None:
    """Notes tiles and ensembles of what is no plain call of a network, and averages that are not kept."""
    section = config.eval
    if section is None or config.steps is None:
        return
    _check_names(section, problems)
    if section.weights == "both" and config.train is not None and config.train.ema is not None and not config.train.ema.enabled:
        what = "no average is kept: 'train.ema.enabled' is false"
        at(section, "weights", problems).note(what, "take 'raw', or keep an average")
    for key in ("tile", "self_ensemble"):
        fault = _fault(config) if chosen(section, key) else None
        if fault is not None:
            key_at(section, key, problems).note(f"needs a network that makes one picture of one picture: {fault}", "remove it")


def _check_names(section: EvalConfig, problems: list[Problem]) -> None:
    """Notes names of figures and files that would fall on others', and pictures that are mapped and not looked at."""
    for name, taken, what in (("values", section.metrics, "a metric"), ("strips", ["grid"], "the grid of outputs")):
        for key in getattr(section, name) or []:
            if key in (taken or []):
                at(section, name, problems).note(f"'{key}' is the name of {what}", "let the injector write another key")
            elif "/" in key:
                at(section, name, problems).note(f"'{key}' names figures or files and must be without '/'", "rename the key")
    mapped = section.reverse_n1_to_1
    shown = [section.output_state, section.target_state, section.input_state, *(section.strips or [])]
    for key in mapped if isinstance(mapped, list) else []:
        if key not in shown:
            what = f"'{key}' is no key that evaluation looks at"
            at(section, "reverse_n1_to_1", problems).note(what, f"those are: {', '.join(map(str, shown))}", "warning")


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
