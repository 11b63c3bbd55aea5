"""A run as Mermaid text, which many Markdown viewers draw."""

from __future__ import annotations

from dlas.config.schema import Config
from dlas.explain.catalogue import number
from dlas.explain.flow import Flow, Node, training_flow, validation_flow

_SHAPES = {"data": ('[("', '")]'), "injector": ('["', '"]'), "loss": ('(["', '"])'), "metrics": ('{{"', '"}}')}


def mermaid(config: Config) -> str:
    """The flow of one iteration and of a validation, as one flowchart."""
    lines = ["flowchart LR"]
    flows = [flow for flow in (training_flow(config), validation_flow(config)) if flow is not None]
    for number_of, flow in enumerate(flows):
        lines += _flow(flow, f"f{number_of}")
    return "\n".join(lines) + "\n"


def _flow(flow: Flow, prefix: str) -> list[str]:
    names = {node.id: f"{prefix}n{position}" for position, node in enumerate(flow.nodes())}
    lines = [_node(flow.data, names, 1)]
    for position, band in enumerate(flow.bands):
        title = band.title + (f" ({band.gate})" if band.gate else "")
        lines.append(f'  subgraph {prefix}s{position}["{_escaped(title)}"]')
        lines += [_node(node, names, 2) for node in band.nodes]
        lines.append("  end")
    arrows: dict[tuple[str, str], list[str]] = {}
    for node in flow.nodes():
        for key in node.reads:
            arrows.setdefault((names[flow.writer(key, node).id], names[node.id]), []).append(key)
    lines += [f'  {start} -->|"{_escaped(", ".join(keys))}"| {end}' for (start, end), keys in arrows.items()]
    return lines


def _node(node: Node, names: dict[str, str], depth: int) -> str:
    words = [node.name, node.type, *(f"network {network}" for network in node.networks), *node.notes]
    if node.weight is not None:
        words.append(f"weight {number(node.weight)}")
    if node.gate:
        words.append(str(node.gate))
    before, after = _SHAPES[node.kind]
    text = "<br/>".join(map(_escaped, words))
    return f"{'  ' * depth}{names[node.id]}{before}{text}{after}"


def _escaped(text: str) -> str:
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
