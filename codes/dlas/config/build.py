"""Marked tree -> sections: every key checked against the schema and against the signatures of registered components."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from dlas.config.announced import note_not_built
from dlas.config.schema import SECTIONS, Component, Config, Section, StepConfig
from dlas.config.source import MarkedDict, plain
from dlas.config.typespec import INVALID, Cursor, Spec, parse_type, shown
from dlas.registry import OPTIMIZERS, Entry, nearest, python_name, yaml_name


def build(tree: MarkedDict, cursor: Cursor) -> Config:
    """Builds the configuration and notes all problems at the cursor. What is unusable is None in the result."""
    config: Config = _section(Config, tree, cursor)
    return config


def to_plain(section: Any) -> Any:
    """A section as ordinary dicts and lists, defaults filled in: what `config.resolved.yml` holds."""
    if is_dataclass(section) and isinstance(section, Section):
        result = {f.name: to_plain(getattr(section, f.name)) for f in _keys(type(section))}
        if isinstance(section, Component):
            result.update(plain(section.options))
        return result
    if isinstance(section, dict):
        return {key: to_plain(value) for key, value in section.items()}
    if isinstance(section, list):
        return [to_plain(value) for value in section]
    return section


def _keys(cls: type[Section]) -> list[Any]:
    return [f for f in fields(cls) if not f.metadata.get("internal")]


def _section_spec(cls: type[Section]) -> Spec:
    return Spec("a mapping", lambda value, cursor: _section(cls, value, cursor))


_NAMED = {name: _section_spec(cls) for name, cls in SECTIONS.items()}


def _section(cls: type[Section], node: Any, cursor: Cursor) -> Any:
    if node is None and not any(f.default is MISSING and f.default_factory is MISSING for f in _keys(cls)):
        node = MarkedDict(cursor.mark)  # `path:` with nothing below it
    if not isinstance(node, dict):
        return cursor.note(f"expected a mapping, found {shown(node)}")
    own = {f.name: f for f in _keys(cls)}
    values: dict[str, Any] = {}
    options = MarkedDict(getattr(node, "mark", cursor.mark))
    for key, value in node.items():
        name = _canonical(cls, key)
        if name in own:
            if name in values:
                cursor.key(node, key).note(f"says the same as '{name}', which is given too", "keep one of them")
                continue
            values[name] = parse_type(str(own[name].type), _NAMED).convert(value, cursor.value(node, key))
        elif issubclass(cls, Component):
            options.put(key, value, cursor.key(node, key).mark, cursor.value(node, key).mark)
        else:
            _unknown(cursor.key(node, key), key, own)
    for name, field in own.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            cursor.note(f"the key '{name}' is missing: {field.metadata['doc']}", f"add '{name}:'")
            values[name] = INVALID
    if cls is StepConfig:
        _check_optimizer(node, cursor)
    if issubclass(cls, Component):
        values["options"] = _component_options(cls, values[cls.NAME_KEYS[0]], options, list(own), cursor)
    # A section with problems is built all the same, with None in place of what is unusable: the checks across sections can
    # then find further problems. `load` refuses it.
    values = {name: None if value is INVALID else value for name, value in values.items()}
    return cls(**values, mark=cursor.mark, yaml_path=cursor.path)


def _canonical(cls: type[Section], key: str) -> str:
    if issubclass(cls, Component) and key in cls.NAME_KEYS:
        return cls.NAME_KEYS[0]
    return key


def _unknown(cursor: Cursor, key: str, known: Any) -> Any:
    close = nearest(key, known)
    fix = f"did you mean '{close}'?" if close else f"known keys: {', '.join(sorted(known))}"
    return cursor.note("unknown key", fix)


def _component_options(cls: type[Component], name: Any, options: MarkedDict, own: list[str], cursor: Cursor) -> dict[str, Any]:
    registry = cls.REGISTRY
    if not isinstance(name, str):
        return {}
    if name not in registry:
        if registry.symbol == "SCHEDULES":  # classes of torch are checked when the schedule is built
            return plain(options)
        if note_not_built(registry.kind, name, cursor):
            return {}
        close = nearest(name, registry.entries())
        fix = f"did you mean '{close}'?" if close else f"registered: {', '.join(registry.entries())}"
        cursor.note(f"no {registry.kind} is called '{name}'", fix)
        return {}
    entry = registry.find(name)
    options = _unnest(cls, entry, options, cursor)
    return check_options(entry, options, own, cursor)


def _check_optimizer(node: Any, cursor: Cursor) -> None:
    if "optimizer_params" not in node and not node.get("losses"):
        return  # it trains nothing: right in a file for testing, and reported by the wiring in others
    name = node.get("optimizer", StepConfig.optimizer)
    given = node.get("optimizer_params", MarkedDict(cursor.mark))
    if name in OPTIMIZERS and isinstance(given, MarkedDict):  # others are classes that are looked at when they are built
        check_options(OPTIMIZERS.find(name), given, [], cursor.value(node, "optimizer_params"))


def _unnest(cls: type[Component], entry: Entry, options: MarkedDict, cursor: Cursor) -> MarkedDict:
    """Options that stand under `kwargs:` or `args:` are taken as if they stood beside it."""
    flat = MarkedDict(options.mark)
    for key, value in options.items():
        inner = value if key in cls.NESTED and entry.parameter(key) is None and isinstance(value, dict) else None
        for name, item in (inner or {key: value}).items() if inner is not None else [(key, value)]:
            holder, place = (inner, cursor.value(options, key)) if inner is not None else (options, cursor)
            flat.put(name, item, place.key(holder, name).mark, place.value(holder, name).mark)
    return flat


def check_options(entry: Entry, options: MarkedDict, beside: list[str], cursor: Cursor) -> dict[str, Any]:
    """Checks options against a component's signature.

    Args:
        entry: the component.
        options: what was given.
        beside: keys of the trainer that may stand beside the options, for suggestions.
        cursor: place of the section.

    Returns:
        The options that are right, converted.
    """
    known = [yaml_name(p.name) for p in entry.parameters]
    result: dict[str, Any] = {}
    for key, value in options.items():
        parameter = entry.parameter(python_name(key, entry))
        if parameter is None:
            if entry.accepts_any:
                result[key] = plain(value)
            else:
                close = nearest(key, [*known, *beside])
                fix = f"did you mean '{close}'?" if close else f"its options: {', '.join(known) or 'none'}"
                cursor.key(options, key).note(f"{entry.kind} '{entry.name}' has no option '{key}'", fix)
            continue
        converted = parse_type(parameter.annotation).convert(value, cursor.value(options, key))
        if converted is not INVALID:
            result[key] = plain(converted)
    for parameter in entry.parameters:
        name = yaml_name(parameter.name)
        if parameter.required and name not in options and name != "scale":  # `scale` is filled in from the top of the file
            cursor.note(f"{entry.kind} '{entry.name}' needs the option '{name}'", f"add '{name}:'")
    return result
