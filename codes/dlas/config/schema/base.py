"""What sections of a configuration file are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dlas.config.source import Mark, MarkedDict
from dlas.registry import Registry

RAW = "raw_"
"""Stands before the names of figures of the networks' own weights where those of their averages stand beside them."""


def opt(default: Any, doc: str) -> Any:
    """A key with a default. Mappings and lists are copied for each file."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def req(doc: str) -> Any:
    """A key that must be given."""
    return field(metadata={"doc": doc})


@dataclass(kw_only=True)
class Section:
    """Part of a configuration.

    `mark` and `yaml_path` tell where it was written; `given` holds what was written, as it was, with the place of each key and
    value: own keys under their documented name, options of a component beside them. `damaged` sections have keys that are not
    known, or values that could not be used and are None here.
    """

    mark: Mark = field(default=Mark(""), repr=False, compare=False, metadata={"internal": True})
    yaml_path: str = field(default="", repr=False, compare=False, metadata={"internal": True})
    damaged: bool = field(default=False, repr=False, compare=False, metadata={"internal": True})
    given: MarkedDict = field(
        default_factory=lambda: MarkedDict(Mark("")), repr=False, compare=False, metadata={"internal": True}
    )


@dataclass(kw_only=True)
class Component(Section):
    """A section that configures a registered component."""

    REGISTRY: ClassVar[Registry]
    NAME_KEYS: ClassVar[tuple[str, ...]] = ("type",)
    NESTED: ClassVar[tuple[str, ...]] = ()  # keys under which the component's options may also stand

    options: dict[str, Any] = field(default_factory=dict, metadata={"internal": True})

    @property
    def component(self) -> str:
        """The registered name."""
        return str(getattr(self, self.NAME_KEYS[0]))
