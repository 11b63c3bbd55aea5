"""Marked tree -> sections: every key checked against the schema and against the signatures of registered components."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import yaml

from dlas.config import torch_classes
from dlas.config.announced import note_not_built
from dlas.config.homes import belongs_elsewhere
from dlas.config.schema import (
    NESTED,
    SECTIONS,
    Component,
    Config,
    EvalConfig,
    ScheduleConfig,
    Section,
    StepConfig,
    nested_words,
)
from dlas.config.source import MarkedDict, plain
from dlas.config.typespec import INVALID, Cursor, Spec, mismatch, parse_type
from dlas.registry import METRICS, OPTIMIZERS, Entry, Parameter, Registry, nearest, python_name, yaml_name

_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the fast one, where PyYAML was built with libyaml


def build(tree: MarkedDict, cursor: Cursor, complete: bool = True) -> Config:
    """Builds the configuration and notes all problems at the cursor. What is unusable is None in the result.

    Args:
        tree: the merged tree of a file.
        cursor: its top.
        complete: False where part of the file could not be read: what is missing may stand there, and is not noted.
    """
    config: Config = _Builder(complete).section(Config, tree, cursor)
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


def to_yaml(section: Section) -> str:
    """The text of `config.resolved.yml`."""
    text: str = yaml.dump(to_plain(section), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _keys(cls: type[Section]) -> list[Any]:
    return [f for f in fields(cls) if not f.metadata.get("internal")]


def _needs_a_key(cls: type[Section]) -> bool:
    return any(f.default is MISSING and f.default_factory is MISSING for f in _keys(cls))


class _Builder:
    def __init__(self, complete: bool) -> None:
        self.complete = complete
        self.named = {name: self._spec(cls) for name, cls in SECTIONS.items()}
        self.named["MetricName"] = Spec("the name of a metric", _metric)
        self.named.update({name: self._nested(cls) for name, cls in NESTED.items()})
        self.specs: dict[str, Spec] = {}

    def _spec(self, cls: type[Section]) -> Spec:
        return Spec("a mapping", lambda value, cursor: self.section(cls, value, cursor), dict)

    def _nested(self, cls: type[Section]) -> Spec:
        """An option that is a section itself, as the plain mapping that constructors take."""

        def convert(value: Any, cursor: Cursor) -> Any:
            section = self.section(cls, value, cursor)
            return INVALID if section is INVALID or section.damaged else to_plain(section)

        words = f"a mapping with the type of {nested_words(cls)}" if issubclass(cls, Component) else nested_words(cls)
        return Spec(words, convert, dict)

    def section(self, cls: type[Section], node: Any, cursor: Cursor) -> Any:
        if node is None and not _needs_a_key(cls):
            node = MarkedDict(cursor.mark)  # `path:` with nothing below it
        if not isinstance(node, dict):
            return mismatch(node, cursor, "a mapping", _not_a_mapping(cls, node, cursor))
        own = {f.name: f for f in _keys(cls)}
        values: dict[str, Any] = {}
        given = MarkedDict(getattr(node, "mark", cursor.mark))
        options = MarkedDict(given.mark)
        written: dict[str, str] = {}  # own name: as it is written in the file
        unknown: list[str] = []
        for key, value in node.items():
            name = cls.NAME_KEYS[0] if issubclass(cls, Component) and key in cls.NAME_KEYS else key
            place = cursor.value(node, key)
            if name in values:
                cursor.key(node, key).note(f"says the same as '{written[name]}', which is given too", "keep one of them")
            elif name in own:
                # A section that may be left out is left out by null too, and is not one with its defaults.
                absent = value is None and own[name].default is None
                values[name] = None if absent else self.spec(str(own[name].type)).convert(value, place)
                written[name] = key
                given.put(name, value, cursor.key(node, key).mark, place.mark)
            elif issubclass(cls, Component):
                options.put(key, value, cursor.key(node, key).mark, place.mark)
            else:
                cursor.key(node, key).note("unknown key", _unknown_fix(cls, key, value, list(own)))
                unknown.append(key)
        misplaced = any(_holds_keys_of(own, node[key]) for key in unknown)
        for name, field in own.items():
            if name in values:
                continue
            if field.default_factory is not MISSING and isinstance(default := field.default_factory(), Section):
                path = f"{cursor.path}.{name}" if cursor.path else name
                values[name] = replace(default, mark=cursor.mark, yaml_path=path)
            elif field.default is MISSING and field.default_factory is MISSING:
                if self.complete and not misplaced:
                    cursor.note(f"the key '{name}' is missing: {field.metadata['doc']}", f"add '{name}:'")
                values[name] = INVALID
        if cls is StepConfig and not misplaced:
            self.optimizer(node, values, cursor)
        if cls is EvalConfig and isinstance(node.get("metric_options"), MarkedDict):
            names = values.get("metrics", EvalConfig().metrics)
            values["metric_options"] = self.metric_options(node["metric_options"], names, cursor.value(node, "metric_options"))
        if issubclass(cls, Component):
            name_key = cls.NAME_KEYS[0]
            place = cursor.value(node, written.get(name_key, name_key))
            values["options"] = self.component(cls, values[name_key], options, list(own), cursor, place)
            for key, value in options.items():
                given.put(key, value, options.key_marks[key], options.value_marks[key])
        # A section with problems is built all the same, with None in place of what is unusable: the checks across sections can
        # then find further problems. `load` refuses it.
        usable = {name: None if value is INVALID else value for name, value in values.items()}
        damaged = bool(unknown) or any(value is INVALID for value in values.values())
        return cls(**usable, mark=cursor.mark, yaml_path=cursor.path, given=given, damaged=damaged)

    def spec(self, text: str) -> Spec:
        if text not in self.specs:
            self.specs[text] = parse_type(text, self.named)
        return self.specs[text]

    def missing(self, cursor: Cursor, message: str, fix: str) -> None:
        if self.complete:
            cursor.note(message, fix)

    def component(
        self, cls: type[Component], name: Any, options: MarkedDict, own: list[str], cursor: Cursor, place: Cursor
    ) -> dict[str, Any]:
        """Checks the options of a component, which `options` then holds flat."""
        if not isinstance(name, str):
            return {}
        entry = _find(cls.REGISTRY, name) or (torch_classes.schedule_entry(name) if cls is ScheduleConfig else None)
        if entry is None:
            known = [*cls.REGISTRY.entries(), *(torch_classes.schedule_names() if cls is ScheduleConfig else ())]
            if cls is ScheduleConfig and not torch_classes.schedule_names() and not _misspelt(name, cls.REGISTRY):
                return plain(options)  # perhaps a class of torch, which is not there to be asked
            if not note_not_built(cls.REGISTRY.kind, name, cursor):
                place.note(f"no {cls.REGISTRY.kind} is called '{name}'", _name_fix(cls.REGISTRY, name, known))
            return {}
        _unnest(cls, entry, options, cursor)
        return self.options(entry, options, [k for k in own if k not in cls.NAME_KEYS], cursor)

    def options(self, entry: Entry, options: MarkedDict, beside: list[str], cursor: Cursor) -> dict[str, Any]:
        """Checks options against a component's signature.

        A component with an option `subtype` and further options of any name passes those on to another of its kind.

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
        further = MarkedDict(options.mark)
        for key, value in options.items():
            parameter = entry.parameter(python_name(key, entry))
            if parameter is not None:
                converted = self.spec(parameter.annotation).convert(value, cursor.value(options, key))
                if converted is not INVALID:
                    result[key] = plain(converted)
            elif entry.accepts_any:
                further.put(key, value, options.key_marks.get(key, options.mark), options.value_marks.get(key))
            else:
                fix = belongs_elsewhere(key, entry.kind) or _suggest(key, known, beside)
                cursor.key(options, key).note(f"{entry.kind} '{entry.name}' has no option '{key}'", fix)
        for parameter in entry.parameters:
            name = yaml_name(parameter.name)
            if parameter.required and name not in options and name != "scale":  # `scale` is filled in from the top of the file
                self.missing(cursor, f"{entry.kind} '{entry.name}' needs the option '{name}'", f"add '{name}:'")
        if entry.accepts_any:
            result |= self._passed_on(entry, further, options, cursor)
        return result

    def _passed_on(self, entry: Entry, further: MarkedDict, options: MarkedDict, cursor: Cursor) -> dict[str, Any]:
        registry, name = _registry_of(entry), options.get("subtype")
        if registry is None or entry.parameter("subtype") is None or not isinstance(name, str):
            return plain(further)
        inner = _find(registry, name)
        if inner is None:
            cursor.value(options, "subtype").note(f"no {entry.kind} is called '{name}'", _name_fix(registry, name))
            return {}
        # The outer component fills in what both have: the inner one's own input and output.
        shared = {p.name for p in entry.parameters}
        parameters = tuple(p for p in inner.parameters if p.name not in shared)
        return self.options(
            Entry(inner.kind, inner.name, inner.source, inner.attribute, parameters, inner.accepts_any), further, [], cursor
        )

    def metric_options(self, given: Any, metrics: Any, cursor: Cursor) -> dict[str, dict[str, Any]]:
        """Checks options of metrics, by name, against their signatures."""
        checked = {}
        for name, options in given.items():
            if isinstance(metrics, list) and name not in metrics:
                known = f"'metrics' has: {', '.join(metrics) or 'nothing'}"
                cursor.key(given, name).note(f"'{name}' is not measured", known, "warning")
            elif name in METRICS and isinstance(options, MarkedDict):
                checked[name] = self.options(METRICS.find(name), options, [], cursor.value(given, name))
        return checked

    def optimizer(self, node: Any, values: dict[str, Any], cursor: Cursor) -> None:
        name = values.get("optimizer", StepConfig.optimizer)
        given = node.get("optimizer_params", MarkedDict(cursor.mark))
        if not isinstance(name, str) or not isinstance(given, MarkedDict):
            return
        if "optimizer_params" not in node and not node.get("losses"):
            return  # it trains nothing: right in a file for testing, and reported by the wiring in others
        entry = _find(OPTIMIZERS, name) or torch_classes.optimizer_entry(name) or _find(OPTIMIZERS, name.lower())
        place = cursor.value(node, "optimizer")
        if entry is None:
            if "." in name or (not torch_classes.optimizer_files() and not _misspelt(name, OPTIMIZERS)):
                return  # a class of a package that is not asked before it is built
            place.note(
                f"no optimizer is called '{name}'",
                _name_fix(OPTIMIZERS, name, [*OPTIMIZERS.entries(), *torch_classes.optimizer_files()]),
            )
        elif entry.name in torch_classes.NOT_CONFIGURABLE:
            place.note(f"'{name}' evaluates the loss several times per step, which the trainer does not do", "take another one")
        else:
            inside = cursor.value(node, "optimizer_params")
            self.options(entry, given, [], inside)
            _param_groups(entry, given, inside)


def _metric(value: Any, cursor: Cursor) -> Any:
    if not isinstance(value, str):
        return mismatch(value, cursor, "the name of a metric", f"registered: {', '.join(METRICS.entries())}")
    return value if value in METRICS else cursor.note(f"no metric is called '{value}'", _name_fix(METRICS, value))


def _find(registry: Registry, name: str) -> Entry | None:
    return registry.find(name) if name in registry else None


def _registry_of(entry: Entry) -> Registry | None:
    sections = [cls for cls in SECTIONS.values() if issubclass(cls, Component)]
    return next((cls.REGISTRY for cls in sections if cls.REGISTRY.kind == entry.kind), None)


def _misspelt(name: str, registry: Registry) -> bool:
    return nearest(name, registry.entries()) is not None


def _name_fix(registry: Registry, name: str, known: list[str] | None = None) -> str:
    names = known if known is not None else list(registry.entries())
    close = nearest(name, names)
    return f"did you mean '{close}'?" if close else f"registered: {', '.join(names)}"


def _suggest(key: str, known: list[str], beside: list[str]) -> str:
    close = nearest(key, [*known, *beside])
    return f"did you mean '{close}'?" if close else f"its options: {', '.join(known) or 'none'}"


def _holds_keys_of(own: Collection[str], value: Any) -> bool:
    """Whether a value looks like the section itself, one level too deep."""
    return isinstance(value, dict) and sum(inner in own for inner in value) > len(value) / 2


def _unknown_fix(cls: type[Section], key: str, value: Any, own: list[str]) -> str:
    if _holds_keys_of(own, value):
        return f"its keys belong one level up: remove the line '{key}:' and indent less"
    elsewhere = belongs_elsewhere(key, cls.__name__)
    close = nearest(key, own)
    if close is not None and close.startswith(key):  # `metric` for `metrics`, though another section has a `metric`
        elsewhere = ""
    return elsewhere or (f"did you mean '{close}'?" if close else f"known keys: {', '.join(sorted(own))}")


def _not_a_mapping(cls: type[Section], node: Any, cursor: Cursor) -> str:
    key = re.sub(r"\[\d+\]$", "", cursor.path).rpartition(".")[2]
    if issubclass(cls, Component):
        name_key = cls.NAME_KEYS[0]
        if isinstance(node, str) and node in cls.REGISTRY and key not in cls.NAME_KEYS:
            return f"write '{key}: {{{name_key}: {node}}}'"
    own = {f.name for f in _keys(cls)} | ({*cls.NAME_KEYS} if issubclass(cls, Component) else set())
    if key in own:
        return f"'{key}' is a key of an entry: give the entry a name, as in '<name>: {{{key}: ...}}'"
    return ""


def _unnest(cls: type[Component], entry: Entry, options: MarkedDict, cursor: Cursor) -> None:
    """Options that stand under `kwargs:` or `args:` are taken as if they stood beside it."""
    for nesting in cls.NESTED:
        inner = options.get(nesting)
        if entry.parameter(nesting) is not None or not isinstance(inner, MarkedDict):
            continue
        place = cursor.value(options, nesting)
        options.take(nesting)
        for name, item in inner.items():
            if name in options:
                place.key(inner, name).note(f"'{name}' is given outside '{nesting}' too", "keep one of them")
            else:
                options.put(name, item, place.key(inner, name).mark, place.value(inner, name).mark)


# Options of an optimiser that hold for all its groups alike, and what a group may have besides the optimiser's options.
_NOT_IN_A_GROUP = {"param_groups", "exclude_norm_and_bias", "beta1", "beta2", "adam_w_mode", "fused"}
_ALSO_IN_A_GROUP = (Parameter("match", "str | None"), Parameter("betas", "list[Fraction]"))


def _param_groups(entry: Entry, options: MarkedDict, cursor: Cursor) -> None:
    groups = options.get("param_groups")
    if not isinstance(groups, MarkedDict) or entry.parameter("param_groups") is None:
        return
    place = cursor.value(options, "param_groups")
    parameters = {p.name: p for p in (*_ALSO_IN_A_GROUP, *entry.parameters) if p.name not in _NOT_IN_A_GROUP}
    if entry.parameter("betas") is None and entry.parameter("beta1") is None:
        del parameters["betas"]
    for name, group in groups.items():
        inside = place.value(groups, name)
        if not isinstance(group, MarkedDict):
            mismatch(group, inside, "a mapping", "for instance {match: <regular expression>, lr: 1e-4}")
            continue
        for key, value in group.items():
            if key not in parameters:
                fix = _suggest(key, list(parameters), [])
                inside.key(group, key).note(f"a group of optimizer '{entry.name}' has no option '{key}'", fix)
                continue
            annotation = "NonNegativeFloat" if key == "lr" else parameters[key].annotation
            converted = parse_type(annotation).convert(value, inside.value(group, key))
            if key == "match" and isinstance(converted, str):
                _regular_expression(converted, inside.value(group, key))


def _regular_expression(text: str, cursor: Cursor) -> None:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        cursor.note(f"'{text}' is no regular expression: {error}", r"a literal dot is written '\.'")
