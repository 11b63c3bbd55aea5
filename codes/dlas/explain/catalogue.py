"""One view of everything that can stand in a file: sections with their keys, components with their options."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from dlas.config.schema import NESTED, SECTIONS, Component, Config, DatasetConfig, NetworkConfig, Section, nested_words
from dlas.config.typespec import Spec, parse_type
from dlas.errors import ConfigurationError
from dlas.explain.docstrings import Docstring, parse_docstring
from dlas.registry import PACKAGE_ROOT, REGISTRIES, REQUIRED, Entry, Registry, nearest, yaml_name

KINDS: dict[str, Registry] = {registry.symbol.lower(): registry for registry in REGISTRIES}
# Components whose option `scale` is that of the file, unless they are told another one.
_SCALED = (NetworkConfig.REGISTRY.kind, DatasetConfig.REGISTRY.kind)
_CITATION = re.compile(r"\bet al\.|arXiv|^Sources?:|\b(?:19|20)\d\d\)")


@dataclass(frozen=True)
class Option:
    """A key of a section or an option of a component.

    Args:
        name: as in YAML.
        annotation: source text of its type.
        default: `REQUIRED` where there is none.
        meaning: one line.
        scaled: the default is the file's `scale`.
    """

    name: str
    annotation: str
    default: Any
    meaning: str
    scaled: bool = False

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED and not self.scaled

    @property
    def type_words(self) -> str:
        """Its type as the checker's messages call it."""
        named = {name: _named(f"section `{place_of(cls).name}`") for name, cls in SECTIONS.items()}
        named |= {name: _named(nested_words(cls)) for name, cls in NESTED.items()}
        return parse_type(self.annotation, named).description

    @property
    def default_words(self) -> str:
        """Its default as it would be written in YAML."""
        if self.scaled:
            return "file's `scale`"
        return "required" if self.required else in_yaml(self.default)


def _named(words: str) -> Spec:
    return Spec(words, lambda value, cursor: value)


def in_yaml(value: Any) -> str:
    """A value as it is written in a file, on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Section):
        return "the section's defaults"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {in_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    if isinstance(value, float):
        return number(value)
    return json.dumps(value) if value == "" else str(value)


def number(value: float) -> str:
    """A number in its shortest exact form: 0.0005, 1e-05, 1000000."""
    text = f"{value:.12g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def options_of(entry: Entry) -> list[Option]:
    """What can be given to a component, in the order of its signature."""
    meanings = documentation(entry).arguments
    return [
        Option(
            yaml_name(p.name),
            p.annotation,
            p.default,
            meanings.get(yaml_name(p.name), ""),
            scaled=p.name == "scale" and entry.kind in _SCALED,
        )
        for p in entry.parameters
    ]


def keys_of(cls: type[Section]) -> list[Option]:
    """The keys of a section that are the trainer's; a component's own options stand beside them."""
    return [_option_of_field(f) for f in fields(cls) if not f.metadata.get("internal")]


def _option_of_field(field: Field[Any]) -> Option:
    default = field.default
    if default is MISSING:
        default = REQUIRED if field.default_factory is MISSING else field.default_factory()
    return Option(field.name, str(field.type), default, str(field.metadata.get("doc", "")))


def documentation(entry: Entry) -> Docstring:
    """The parts of a component's docstring."""
    return _parsed(entry.doc)


@cache
def _parsed(doc: str) -> Docstring:
    return parse_docstring(doc)


def source_of(entry: Entry) -> str:
    """The paper: what the component's docstring names under `Source`, else the citations in the docstring of its file."""
    return documentation(entry).source or _cited_by_file(entry.source)


@cache
def _cited_by_file(source: str) -> str:
    path = _file_of(source)
    if path is None or not path.is_file():
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    cited = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")[1:] if _CITATION.search(paragraph)]
    return " ".join(re.sub(r"^Sources?: ", "", paragraph) for paragraph in cited)


def _file_of(source: str) -> Path | None:
    """The file of a module; `importlib.util.find_spec` would import the packages that it lies in."""
    if source.endswith(".py"):
        return Path(source)
    package, *rest = source.split(".")
    if package != PACKAGE_ROOT.name:
        return None
    path = PACKAGE_ROOT.joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def shipped(registry: Registry) -> dict[str, Entry]:
    """Components of the package, without those of plug-ins and of this session."""
    return {name: entry for name, entry in registry.entries().items() if entry.source.startswith(f"{PACKAGE_ROOT.name}.")}


# ------------------------------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class Place:
    """Where a section stands.

    Args:
        name: what listings call it.
        path: its YAML path; `<name>` stands for a name that the user chooses.
        cls: the section.
    """

    name: str
    path: str
    cls: type[Section]


@cache
def section_places() -> dict[str, Place]:
    """Every section once, by name, the whole file (`top`) first."""
    found: dict[type[Section], Place] = {Config: Place("top", "", Config)}
    waiting = [found[Config]]
    while waiting:
        parent = waiting.pop(0)
        for field in fields(parent.cls):
            for cls, many in sections_in(str(field.type)):
                if field.metadata.get("internal") or cls in found:
                    continue
                path = f"{parent.path}.{field.name}" if parent.path else field.name
                taken = any(place.name == field.name for place in found.values())
                found[cls] = Place(path if taken else field.name, f"{path}.<name>" if many else path, cls)
                waiting.append(found[cls])
    return {place.name: place for place in found.values()}


def sections_in(annotation: str) -> list[tuple[type[Section], bool]]:
    """The sections that a key's type names, and whether the key holds many of them by name."""
    tree = ast.parse(annotation, mode="eval")
    many = {id(n) for each in ast.walk(tree) if isinstance(each, ast.Subscript) for n in ast.walk(each.slice)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in SECTIONS]
    return [(SECTIONS[node.id], id(node) in many) for node in names]


def place_of(cls: type[Section]) -> Place:
    """Where a section stands."""
    return next(place for place in section_places().values() if place.cls is cls)


def find_section(name: str) -> Place:
    """The section called `name`: its key, or its path (`train.ema`).

    Raises:
        ConfigurationError: there is none; the nearest one is given.
    """
    places = section_places()
    for place in places.values():
        if name in (place.name, place.path, place.path.replace(".<name>", "")):
            return place
    close = nearest(name, places)
    hint = f"did you mean '{close}'?" if close else f"known: {', '.join(places)}"
    raise ConfigurationError(f"no section is called '{name}'; {hint}")


def component_section(registry: Registry) -> type[Component] | None:
    """The section that configures components of a kind; None for metrics and optimisers, which stand inside other sections."""
    for cls in (*SECTIONS.values(), *NESTED.values()):
        if issubclass(cls, Component) and cls.REGISTRY is registry:
            return cls
    return None
