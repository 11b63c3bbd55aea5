"""Checks across sections: names that refer to each other, and who trains what."""

from __future__ import annotations

from collections.abc import Iterator

from dlas.config.schema import Component, Config
from dlas.config.typespec import Cursor
from dlas.registry import nearest, yaml_name


def check_wiring(config: Config, cursor: Cursor, training: bool) -> None:
    """Notes every reference to a network that does not exist, and networks that no step or two steps train.

    Sections may have problems of their own already, and None where a value was unusable.
    """
    for step in config.steps.values():
        place = Cursor(step.mark, step.yaml_path, cursor.problems)
        for name in step.trained:
            if name not in config.networks:
                _no_network(Cursor(step.mark, f"{step.yaml_path}.training", cursor.problems), name, config)
        for component in (*step.injectors.values(), *step.losses.values()):
            _check_references(component, config, cursor)
        if training and not step.losses:
            place.note("the step has no losses, so it can train nothing", "add 'losses:'")
    for component in config.eval.injectors.values() if config.eval else ():
        _check_references(component, config, cursor)
    if training:
        _check_trained(config, cursor)


def _check_references(component: Component, config: Config, cursor: Cursor) -> None:
    for option, name in _network_names(component):
        if name not in config.networks:
            _no_network(Cursor(component.mark, f"{component.yaml_path}.{option}", cursor.problems), name, config)


def _network_names(component: Component) -> Iterator[tuple[str, str]]:
    if component.component not in component.REGISTRY:
        return
    for parameter in component.REGISTRY.find(component.component).parameters:
        option = yaml_name(parameter.name)
        value = component.options.get(option)
        if parameter.annotation.startswith("NetworkName") and isinstance(value, str):
            yield option, value


def _no_network(cursor: Cursor, name: str, config: Config) -> None:
    close = nearest(name, config.networks)
    fix = f"did you mean '{close}'?" if close else f"networks in this file: {', '.join(config.networks) or 'none'}"
    cursor.note(f"no network is called '{name}'", fix)


def _check_trained(config: Config, cursor: Cursor) -> None:
    trainer: dict[str, str] = {}
    for step_name, step in config.steps.items():
        place = Cursor(step.mark, f"{step.yaml_path}.training", cursor.problems)
        for name in step.trained:
            network = config.networks.get(name)
            if network is not None and not network.trainable:
                place.note(f"network '{name}' has 'trainable: false', but this step trains it", "change one of the two")
            if name in trainer:
                place.note(
                    f"network '{name}' is trained by the step '{trainer[name]}' too",
                    "let one step train it; a network has one optimiser",
                )
            trainer.setdefault(name, step_name)
    for name, network in config.networks.items():
        if network.trainable and name not in trainer:
            Cursor(network.mark, network.yaml_path, cursor.problems).note(
                "no step trains this network",
                "add a step for it, or 'trainable: false' if it is meant to stay as it is",
                "warning",
            )
