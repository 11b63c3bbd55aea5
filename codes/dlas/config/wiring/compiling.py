"""What the section `compile` asks for."""

from __future__ import annotations

from dlas.config.problems import Problem
from dlas.config.schema import CompileConfig, Config
from dlas.config.wiring.components import at


def check_compiling(config: Config, problems: list[Problem], training: bool) -> None:
    """Notes networks that there are not, and modes of another compiler."""
    section = config.compile
    if not training or not isinstance(section, CompileConfig):
        return
    if section.networks is not None and config.networks is not None:
        cursor = at(section, "networks", problems)
        for name in section.networks:
            if name not in config.networks:
                cursor.note(f"no network is called '{name}'", f"there are: {', '.join(config.networks)}")
        if not section.networks:
            cursor.note("no network is compiled", "name some, leave 'networks' out to have all, or write 'compile: false'")
    if section.mode not in (None, "default") and section.backend not in (None, "inductor"):
        at(section, "mode", problems).note(f"the backend '{section.backend}' has no modes", "remove one of the two")
