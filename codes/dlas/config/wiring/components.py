"""What a component does to the state, as its signature tells: keys read and written, networks run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from dlas.config.problems import Problem
from dlas.config.schema import Component, InjectorConfig, Section
from dlas.config.typespec import Cursor
from dlas.registry import REQUIRED, Entry, Parameter, python_name, yaml_name


@dataclass(frozen=True)
class Reference:
    """A name that an option holds, and where it stands. `option` is the option's name."""

    name: str
    option: str
    place: Cursor


@dataclass
class Facts:
    """What is known of a component.

    Args:
        section: its section.
        entry: its registration; None if the name is not registered, and then nothing else is known.
        reads: state keys that it reads.
        writes: state keys that it writes.
        networks: networks that it runs.
        unnamed_networks: options that name a network and are not given: the one that the step trains. An injector may do
            without networks that it does not need.
        complete: False if an option that names state keys could not be understood.
    """

    section: Component
    entry: Entry | None
    reads: list[Reference] = field(default_factory=list)
    writes: list[Reference] = field(default_factory=list)
    networks: list[Reference] = field(default_factory=list)
    unnamed_networks: list[str] = field(default_factory=list)
    complete: bool = True

    @property
    def title(self) -> str:
        """How it is called in messages."""
        kind = "injector" if isinstance(self.section, InjectorConfig) else "loss"
        return f"{kind} '{self.section.yaml_path.rpartition('.')[2]}'"

    @property
    def detaches(self) -> bool:
        """Whether no gradient passes from what it reads to what it gives."""
        if self.entry is None:
            return False
        stopped = getattr(self.section, "no_grad", False) or bool(self.entry.attributes.get("detaches"))
        return bool(stopped or (self.entry.parameter("grad") is not None and self.section.options.get("grad") is False))


def at(section: Section, key: str, problems: list[Problem]) -> Cursor:
    """The place of a key's value in a section; the section's own where the key is not given."""
    top = Cursor(section.mark, section.yaml_path, problems)
    return top.value(section.given, key)


def key_at(section: Section, key: str, problems: list[Problem]) -> Cursor:
    """The place of a key."""
    return Cursor(section.mark, section.yaml_path, problems).key(section.given, key)


def chosen(section: Section, key: str) -> bool:
    """Whether a key has another value than if it were left out."""
    value = getattr(section, key)
    return value is not None and value != next(f.default for f in fields(section) if f.name == key)


def option(section: Component, name: str) -> Any:
    """An option's value, or the default that the component's signature gives; None if there is neither."""
    if name in section.options:
        return section.options[name]
    entry = entry_of(section)
    parameter = entry.parameter(python_name(name, entry)) if entry is not None else None
    return None if parameter is None or parameter.default is REQUIRED else parameter.default


def entry_of(section: Component) -> Entry | None:
    """The registration of a section's component."""
    name = getattr(section, section.NAME_KEYS[0])
    return section.REGISTRY.find(name) if isinstance(name, str) and name in section.REGISTRY else None


def facts(section: Component, problems: list[Problem]) -> Facts:
    """What a component's options say about state keys and networks."""
    entry = entry_of(section)
    found = Facts(section, entry)
    if entry is None:
        return found
    outputs: dict[str, Any] = {}
    for parameter in entry.parameters:
        _take(found, parameter, problems)
        name = yaml_name(parameter.name)
        outputs[name] = option(section, name)
    for template in entry.attributes.get("derived_outputs", ()):
        name = template[template.find("{") + 1 : template.find("}")]
        if isinstance(outputs.get(name), str):
            place = at(section, name, problems)
            found.writes.append(Reference(template.format(**{name: outputs[name]}), name, place))
    inner = outputs.get("subtype")
    if entry.accepts_any and isinstance(inner, str):
        if inner not in section.REGISTRY:
            found.complete = False
            return found
        # The inner component's own input and output are the outer one's affair; what else it reads it reads from the state.
        shared = {p.name for p in entry.parameters}
        for parameter in section.REGISTRY.find(inner).parameters:
            if parameter.name not in shared and "StateOut" not in parameter.annotation:
                _take(found, parameter, problems)
    return found


def _take(found: Facts, parameter: Parameter, problems: list[Problem]) -> None:
    section, name, annotation = found.section, yaml_name(parameter.name), parameter.annotation
    value = section.options.get(name, None if parameter.default is REQUIRED else parameter.default)
    place = at(section, name, problems)
    if "NetworkName" in annotation:
        if isinstance(value, str):
            found.networks.append(Reference(value, name, place))
        elif name not in section.given and (parameter.required or not isinstance(section, InjectorConfig)):
            found.unnamed_networks.append(name)
        return
    target = found.writes if "StateOut" in annotation else found.reads if "StateIn" in annotation else None
    if target is None:
        return
    if name not in section.options and (name in section.given or parameter.default is REQUIRED):
        found.complete = False
    # Lists of the file know where their items stand; those of `options` are plain.
    written = section.given.get(name, value)
    target.extend(Reference(key, name, where) for key, where in _names(written, place) if key != "None")


def _names(value: Any, place: Cursor) -> Iterator[tuple[str, Cursor]]:
    if isinstance(value, str):
        yield value, place
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _names(item, place.item(value, position))
    elif isinstance(value, dict):  # names of arguments to keys
        for argument, item in value.items():
            yield from _names(item, place.value(value, argument))
