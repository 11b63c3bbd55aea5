"""Names that refer to other entries of the file: networks, and which data set is for what."""

from __future__ import annotations

from collections.abc import Iterator

from dlas.config.problems import Problem
from dlas.config.schema import Component, Config, StepConfig
from dlas.config.typespec import Cursor
from dlas.config.wiring.components import at, chosen, facts, key_at
from dlas.registry import nearest

_LOADER_KEYS = ("batch_size", "n_workers", "pin_memory", "prefetch_factor")


def check_names(config: Config, problems: list[Problem], training: bool) -> None:
    """Notes every reference to a network that does not exist, networks that nothing uses, and data sets of no effect."""
    used: set[str] = set()
    if config.networks is not None:  # else the schema has refused the section
        for step in (config.steps or {}).values():
            for name, place in trained_at(step, problems):
                _check_network(name, place, config)
                used.add(name)
        for component in _components(config):
            found = facts(component, problems)
            if found.entry is None or not found.complete:
                used |= set(config.networks)  # it may use any
            for reference in found.networks:
                _check_network(reference.name, reference.place, config)
                used.add(reference.name)
        pretrain = (config.path.given.get("pretrain") if config.path else None) or {}
        for name in pretrain if isinstance(pretrain, dict) else {}:
            _check_network(name, at(config.path, "pretrain", problems).key(pretrain, name), config)
        for name, network in config.networks.items():
            if name not in used and training and not network.trainable:  # a trainable one is the business of `trained`
                note = Cursor(network.mark, network.yaml_path, problems).note
                note("no injector and no loss uses this network", "use it, or remove it", "warning")
    if training:
        _check_datasets(config, problems)
        if config.path and config.path.run is not None:
            fix = "to go on with a run, give it the same 'name'; to start from weights use 'path.pretrain'"
            key_at(config.path, "run", problems).note("has no effect in training", fix, "warning")


def trained_at(step: StepConfig, problems: list[Problem]) -> Iterator[tuple[str, Cursor]]:
    """The networks that a step trains, with their places."""
    place, given = at(step, "training", problems), step.given.get("training")
    for position, name in enumerate(step.trained):
        yield name, place.item(given, position) if isinstance(given, list) and len(given) == len(step.trained) else place


def _components(config: Config) -> Iterator[Component]:
    for step in (config.steps or {}).values():
        yield from (step.injectors or {}).values()
        yield from (step.losses or {}).values()
    for section in (config.eval, config.encode):
        if section:
            yield from (section.injectors or {}).values()


def _check_network(name: str, place: Cursor, config: Config) -> None:
    written = config.given.get("networks")
    if name in config.networks or (isinstance(written, dict) and name in written):
        return
    close = nearest(name, config.networks)
    fix = f"did you mean '{close}'?" if close else f"networks in this file: {', '.join(config.networks) or 'none'}"
    place.note(f"no network is called '{name}'", fix)


def _check_datasets(config: Config, problems: list[Problem]) -> None:
    for name, section in (config.datasets or {}).items():
        if name == "train":
            continue
        if "train" in config.datasets and name.lower().startswith("train"):
            what = "the run trains on 'train' only, and validates on this data set"
            Cursor(section.mark, section.yaml_path, problems).note(what, "call it 'val...' if that is meant", "warning")
        for key in _LOADER_KEYS:
            if chosen(section, key):
                what = "has no effect: evaluation reads its samples one after the other, in the main process"
                fix = "set 'eval.batch_size'" if key == "batch_size" else "remove it"
                key_at(section, key, problems).note(what, fix, "warning")
