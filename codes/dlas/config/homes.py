"""Where in a file a key belongs: for a key that stands in the wrong section."""

from __future__ import annotations

import re
from functools import cache

from dlas.config.schema import SECTIONS, Component, Config, Section
from dlas.registry import OPTIMIZERS, yaml_name

_TOP = "the top of the file"


def belongs_elsewhere(key: str, here: str) -> str:
    """`belongs under 'train'`, or nothing if no other section knows the key.

    Args:
        key: the key as it was written.
        here: the section in which it stands: its class, or the kind of a component.
    """
    homes = [path for path, owner in _homes().get(key, ()) if owner != here]
    if not homes or len(homes) > 3:
        return ""
    return "belongs " + " or ".join(f"at {home}" if home == _TOP else f"under '{home}'" for home in homes)


@cache
def _homes() -> dict[str, list[tuple[str, str]]]:
    """For each key of the schema the sections that have it, with the section's class (or the kind of its component)."""
    found: dict[str, list[tuple[str, str]]] = {}
    _collect(Config, "", found)
    options = {yaml_name(p.name) for entry in OPTIMIZERS.entries().values() for p in entry.parameters}
    for option in options:
        found.setdefault(option, []).append(("steps.<name>.optimizer_params", OPTIMIZERS.kind))
    return found


def _collect(cls: type[Section], path: str, found: dict[str, list[tuple[str, str]]]) -> None:
    for name, annotation in cls.__annotations__.items():
        if name in ("mark", "yaml_path", "given", "options", "notices") or "ClassVar" in str(annotation):
            continue
        owner = cls.REGISTRY.kind if issubclass(cls, Component) else cls.__name__
        for key in cls.NAME_KEYS if issubclass(cls, Component) and name == cls.NAME_KEYS[0] else (name,):
            found.setdefault(key, []).append((path or _TOP, owner))
        for inner in re.findall(r"\w+", str(annotation)):
            if inner in SECTIONS:
                named = ".<name>" if str(annotation).startswith("dict") else ""
                _collect(SECTIONS[inner], f"{path}.{name}".lstrip(".") + named, found)
