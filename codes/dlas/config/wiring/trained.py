"""Who trains what, and whether losses reach what their step trains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from dlas.config.problems import Problem
from dlas.config.schema import Config, LossConfig, StepConfig
from dlas.config.typespec import Cursor
from dlas.config.wiring.components import Facts, at, facts
from dlas.config.wiring.names import trained_at
from dlas.config.wiring.state import Place


def check_trained(config: Config, problems: list[Problem], unwritten: set[Place]) -> None:
    """Notes networks without an optimiser or with two, frozen ones that are trained, and losses that teach nobody.

    Args:
        config: the configuration.
        problems: takes the problems.
        unwritten: places that read what nobody writes: what would come from there is not judged.
    """
    if config.steps is None or config.networks is None:
        return  # the schema has refused the section
    _check_owners(config, problems)
    for step in config.steps.values():
        if step.losses is None or step.injectors is None:
            continue
        if not step.losses:
            if not step.damaged:
                note = Cursor(step.mark, step.yaml_path, problems).note
                note("the step has no losses, so it can train nothing", "add 'losses:'")
            continue
        if step.trained and not step.damaged and all(name in config.networks for name in step.trained):
            _check_reach(step, _Gradients(frozenset(step.trained), config.networks, unwritten), problems)


def _check_owners(config: Config, problems: list[Problem]) -> None:
    owner: dict[str, str] = {}
    for step_name, step in config.steps.items():
        if step.training == []:
            at(step, "training", problems).note("the step trains no network", "name one, or a list of them")
        for name, place in trained_at(step, problems):
            network = config.networks.get(name)
            if network is not None and network.trainable is False:
                frozen = at(network, "trainable", problems).mark
                place.note(
                    f"network '{name}' has 'trainable: false', but this step trains it ({frozen})", "change one of the two"
                )
            if owner.get(name) == step_name:
                place.note(f"network '{name}' is named twice", "remove one")
            elif name in owner:
                first = at(config.steps[owner[name]], "training", problems).mark
                place.note(
                    f"network '{name}' is trained by the step '{owner[name]}' too ({first})",
                    "let one step train it; a network has one optimiser",
                )
            owner.setdefault(name, step_name)
    unclear = any(step.training is None for step in config.steps.values())
    for name, network in config.networks.items():
        if network.trainable and name not in owner and not unclear:
            Cursor(network.mark, network.yaml_path, problems).note(
                "no step trains this network",
                "add a step for it, or 'trainable: false' if it is meant to stay as it is",
                "warning",
            )


@dataclass
class _Gradients:
    """For each state key the trained networks into which a gradient at the key flows back."""

    trained: frozenset[str]
    networks: Collection[str]
    unwritten: set[Place]
    keys: dict[str, frozenset[str]] = field(default_factory=dict)
    unknown: bool = False  # something that is not registered has written: it may have written anything

    def of(self, found: Facts) -> frozenset[str]:
        """The trained networks that a component's result depends on, for all that is known."""
        if found.entry is None or not found.complete:
            return self.trained
        if any(reference.name not in self.networks for reference in found.networks):
            return self.trained
        if any((reference.place.mark, reference.place.path) in self.unwritten for reference in found.reads):
            return self.trained
        own = frozenset(reference.name for reference in found.networks) & self.trained
        if found.unnamed_networks:
            own |= self.trained
        if isinstance(found.section, LossConfig):
            if not found.reads and not own and not found.networks:
                return self.trained  # it finds what it needs by itself: a penalty on weights, for instance
            if found.detaches:
                return own
        elif found.detaches:
            return frozenset()
        for reference in found.reads:
            own |= self.keys.get(reference.name, self.trained if self.unknown else frozenset())
        return own


def _check_reach(step: StepConfig, gradients: _Gradients, problems: list[Problem]) -> None:
    # What the data set gave and earlier steps wrote carries no gradient.
    for section in step.injectors.values():
        if section.eval:
            continue
        found = facts(section, problems)
        result = gradients.of(found)
        gradients.unknown |= found.entry is None or not found.complete
        for reference in found.writes:
            gradients.keys[reference.name] = gradients.keys.get(reference.name, frozenset()) | result
    reached: set[str] = set()
    for loss in step.losses.values():
        found = facts(loss, problems)
        if found.unnamed_networks and len(step.trained) != 1:
            names = " or ".join(step.trained)
            place = Cursor(loss.mark, loss.yaml_path, problems)
            place.note(
                f"which network does '{loss.type}' judge with? The step trains several",
                f"add '{found.unnamed_networks[0]}: {names}'",
            )
        reach = gradients.of(found)
        reached |= reach
        if not reach and loss.type is not None:
            _note_no_reach(step, found, problems)
    for name, place in trained_at(step, problems):
        if name not in reached and reached:
            place.note(
                f"no loss of this step reaches the network '{name}', so it never learns", "add a loss, or do not train it"
            )


def _note_no_reach(step: StepConfig, found: Facts, problems: list[Problem]) -> None:
    trained = " or ".join(f"'{name}'" for name in step.trained)
    keys = ", ".join(dict.fromkeys(reference.name for reference in found.reads)) or "nothing"
    Cursor(found.section.mark, found.section.yaml_path, problems).note(
        f"this loss reaches no network that its step trains ({trained})",
        f"what it reads ({keys}) must come from such a network in this step, with gradients: not from the data, another step, "
        "'no_grad', 'grad: false' or 'detach'",
    )
