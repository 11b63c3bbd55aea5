"""How a file's injectors call networks."""

from __future__ import annotations

from dlas.config import Config


def called_methods(config: Config) -> dict[str, set[str]]:
    """Methods other than `forward` by which injectors call networks, by network."""
    found: dict[str, set[str]] = {}
    sections = [each for step in config.steps.values() for each in step.injectors.values()]
    for section in (*sections, *(each for _, each in config.evaluation_injectors())):
        method = section.options.get("method")
        if isinstance(method, str):
            found.setdefault(str(section.options.get("generator")), set()).add(method)
    return found
