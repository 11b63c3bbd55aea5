"""`dlas list`."""

from __future__ import annotations

import argparse

from dlas.registry import REGISTRIES, yaml_name

_KINDS = {registry.symbol.lower(): registry for registry in REGISTRIES}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("kind", choices=sorted(_KINDS))
    parser.add_argument("name", nargs="?", help="show the options of this one")


def run(arguments: argparse.Namespace) -> int:
    """Prints names with a line each, or one component with its options."""
    registry = _KINDS[arguments.kind]
    if arguments.name is None:
        for name, entry in registry.entries().items():
            print(f"{name:<28} {entry.doc.partition(chr(10))[0]}")
        return 0
    entry = registry.find(arguments.name)
    print(f"{entry.name} ({entry.source}.{entry.attribute})\n\n{entry.doc}\n")
    for parameter in entry.parameters:
        default = "required" if parameter.required else f"default {parameter.default!r}"
        print(f"  {yaml_name(parameter.name):<24} {parameter.annotation}, {default}")
    return 0
