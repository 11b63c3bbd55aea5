"""A piece of YAML that uses a component: the example in its docstring, or its required options with plausible values."""

from __future__ import annotations

import ast
from dataclasses import MISSING, fields
from typing import Any

from dlas.config.schema import NESTED, Component, Section
from dlas.explain.catalogue import Option, component_section, documentation, in_yaml, options_of
from dlas.registry import METRICS, OPTIMIZERS, Entry, Registry

# What a required option is likely to be called with, by its name, then by its type.
_BY_NAME = {"real": "hq", "fake": "gen", "lq": "lq", "hq": "hq", "lr": "1e-4", "device": "cpu", "subtype": "grey", "in": "lq"}
_BY_TYPE = {
    "StateIn": "lq",
    "StateIns": "lq",
    "StateOut": "result",
    "StateOuts": "result",
    "bool": "true",
    "str": "text",
    "float": "0.5",
    "PositiveFloat": "0.5",
    "NonNegativeFloat": "0.5",
    "Fraction": "0.5",
}
_SECTION_KEY = {"network": "networks", "dataset": "datasets", "injector": "injectors", "loss": "losses", "schedule": "train"}
_ENTRY_NAME = {"network": "generator", "dataset": "train", "schedule": "lr_scheme"}

_OPTION_KEY = {  # kinds that are options of other components
    "degradation": "degradation",
    "process": "process",
    "distribution of times": "times",
    "weighting": "weighting",
    "sampler": "sampler",
    "quantizer": "quantizer",
}


def example(entry: Entry, registry: Registry) -> str:
    """YAML that uses the component."""
    if registry is METRICS:
        return f"eval:\n  metrics: [{entry.name}]"
    options = documentation(entry).example.splitlines() or [
        f"{option.name}: {_sample(option)}" for option in options_of(entry) if option.required
    ]
    if registry is OPTIMIZERS:
        lines = [f"optimizer: {entry.name}", "optimizer_params:", *(f"  {line}" for line in options)]
        return "\n".join(["steps:", "  generator:", *(f"    {line}" for line in lines)])
    section = component_section(registry)
    assert section is not None, "a kind of component is a metric, an optimiser or has a section"
    if entry.kind in _OPTION_KEY:
        return "\n".join([f"{_OPTION_KEY[entry.kind]}:", f"  type: {entry.name}", *(f"  {line}" for line in options)])
    own = [f"{section.NAME_KEYS[0]}: {entry.name}", *(["weight: 1"] if entry.kind == "loss" else [])]
    name = _ENTRY_NAME.get(entry.kind, entry.name)
    return "\n".join([f"{_SECTION_KEY[entry.kind]}:", f"  {name}:", *(f"    {line}" for line in [*own, *options])])


def _sample(option: Option) -> str:
    if option.name in _BY_NAME:
        return _BY_NAME[option.name]
    return in_yaml(_of_type(ast.parse(option.annotation, mode="eval").body, option.name))


def _of_section(cls: type[Section]) -> dict[str, Any]:
    if issubclass(cls, Component):
        return {cls.NAME_KEYS[0]: next(iter(cls.REGISTRY.entries()))}
    own = [f for f in fields(cls) if not f.metadata.get("internal")]
    needed = [f for f in own if f.default is MISSING and f.default_factory is MISSING]
    return {f.name: _of_type(ast.parse(str(f.type), mode="eval").body, f.name) for f in needed}


def _of_type(node: ast.expr, name: str) -> Any:
    if isinstance(node, ast.BinOp):
        return _of_type(node.left, name)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return ast.literal_eval(inner[0])
        if node.value.id == "dict":
            return {}
        return ["hq", "gen"] if ast.unparse(inner[0]) == "StateIn" else [_of_type(inner[0], name)]
    text = ast.unparse(node)
    if text == "NetworkName":
        return name
    if text in NESTED:
        return _of_section(NESTED[text])
    return _BY_TYPE.get(text, "1")
