"""What happens in one iteration and in one validation, as a graph: who reads and writes which state keys, and when."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dlas.config.schema import Component, Config, DatasetConfig, InjectorConfig, LossConfig, StepConfig
from dlas.explain.catalogue import number
from dlas.registry import INJECTORS, Entry, yaml_name

NodeKind = Literal["data", "injector", "loss", "metrics"]


@dataclass(frozen=True)
class Gate:
    """When something is on: iterations s with after <= s < before and s divisible by every."""

    after: int = 0
    before: int | None = None
    every: int = 1

    def __str__(self) -> str:
        parts = []
        if self.after and self.before is not None:
            parts.append(f"iterations {self.after} to {self.before - 1}")
        elif self.after:
            parts.append(f"from iteration {self.after} on")
        elif self.before is not None:
            parts.append(f"before iteration {self.before}")
        if self.every > 1:
            parts.append(f"every {self.every} iterations")
        return ", ".join(parts)

    def __bool__(self) -> bool:
        """Whether it is ever closed."""
        return bool(self.after or self.before is not None or self.every > 1)


@dataclass(frozen=True)
class Node:
    """Something that reads or writes state keys.

    Args:
        id: unique in its flow: `step/name`.
        kind: what it is.
        name: as in the file.
        type: the registered component, or the metrics.
        networks: that it runs, in the order of its options.
        reads: state keys.
        writes: state keys.
        gate: when it is on.
        notes: further conditions: "in training only".
        weight: of a loss.
    """

    id: str
    kind: NodeKind
    name: str
    type: str
    networks: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    gate: Gate = Gate()
    notes: tuple[str, ...] = ()
    weight: float | None = None


@dataclass(frozen=True)
class Band:
    """One step, or the validation.

    Args:
        name: of the step.
        title: one line for people.
        details: a second line.
        gate: when the step runs.
        nodes: in the order in which they run.
    """

    name: str
    title: str
    details: str
    gate: Gate
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Flow:
    """Data and what is done with it, in order.

    Args:
        name: "one iteration" or "validation".
        data: where the first keys come from.
        bands: in order.
    """

    name: str
    data: Node
    bands: tuple[Band, ...]

    def nodes(self) -> list[Node]:
        """All nodes, the data first."""
        return [self.data, *(node for band in self.bands for node in band.nodes)]

    def writer(self, key: str, reader: Node) -> Node:
        """The node that wrote a key before `reader` runs; what nobody wrote comes with the data."""
        found = self.data
        for node in self.nodes():
            if node is reader:
                break
            if key in node.writes:
                found = node
        return found


def training_flow(config: Config) -> Flow | None:
    """One iteration; None where the file has no training data or no steps."""
    if "train" not in config.datasets or not config.steps:
        return None
    bands = tuple(_step_band(name, step, config) for name, step in config.steps.items())
    return _with_data("one iteration", {"train": config.datasets["train"]}, bands, config)


def validation_flow(config: Config) -> Flow | None:
    """What is done with each validation sample; None where there is no data set to validate on."""
    datasets = {name: section for name, section in config.datasets.items() if name != "train"}
    if not datasets:
        return None
    section = config.eval
    nodes = [
        node for node in (_injector_node("eval", name, each) for name, each in validation_injectors(config).items()) if node
    ]
    reads = tuple(dict.fromkeys([section.output_state, section.target_state, section.input_state, *section.values]))
    nodes.append(Node("eval/metrics", "metrics", "metrics", ", ".join([*section.metrics, *section.values]), reads=reads))
    baseline = f"beside {section.baseline}" if section.baseline != "none" and config.scale > 1 else ""
    averaged = "averaged weights" if config.train and config.train.ema.enabled and section.weights == "ema" else ""
    band = Band("eval", "validation", ", ".join(filter(None, [averaged, baseline])), Gate(), tuple(nodes))
    return _with_data("validation", datasets, (band,), config)


def validation_injectors(config: Config) -> dict[str, InjectorConfig]:
    """Those that run in evaluation, by name; the ones for training only are left out."""
    return {name: each for name, each in config.evaluation_injectors() if not each.train}


def _step_band(name: str, step: StepConfig, config: Config) -> Band:
    trained = tuple(step.trained)
    nodes = [_injector_node(name, key, each) for key, each in step.injectors.items() if not each.eval]
    nodes += [_loss_node(name, key, each, trained) for key, each in step.losses.items()]
    rate = step.optimizer_params.get("lr")
    details = [f"{step.optimizer}, lr {number(rate)}" if isinstance(rate, int | float) else step.optimizer]
    scheme = step.lr_scheme or (config.train.lr_scheme if config.train else None)
    if scheme:
        details.append(scheme.type)
    gate = Gate(step.after, step.before, step.every)
    return Band(name, f"step {name}: trains {' and '.join(trained)}", ", ".join(details), gate, tuple(nodes))


def _injector_node(band: str, name: str, section: InjectorConfig) -> Node:
    keys = KeyUse.of(section, ())
    notes = []
    if section.train:
        notes.append("in training only")
    if section.no_grad or section.options.get("grad") is False:
        notes.append("no gradients")
    gate = Gate(section.after, section.before, section.every)
    return Node(f"{band}/{name}", "injector", name, section.type, keys.networks, keys.reads, keys.writes, gate, tuple(notes))


def _loss_node(band: str, name: str, section: LossConfig, trained: tuple[str, ...]) -> Node:
    keys = KeyUse.of(section, trained)
    gate = Gate(section.after, section.before, section.every)
    # A step may have an injector and a loss of one name.
    return Node(
        f"{band}/losses/{name}",
        "loss",
        name,
        section.type,
        keys.networks,
        keys.reads,
        keys.writes,
        gate,
        weight=section.weight,
    )


def _with_data(name: str, datasets: Mapping[str, DatasetConfig], bands: tuple[Band, ...], config: Config) -> Flow:
    types = ", ".join(dict.fromkeys(section.mode for section in datasets.values()))
    data = Node("data", "data", " and ".join(datasets), types)
    unwritten: dict[str, None] = {}
    written: set[str] = set()
    for band in bands:
        for node in band.nodes:
            unwritten.update(dict.fromkeys(key for key in node.reads if key not in written))
            written.update(node.writes)
    return Flow(name, Node(data.id, data.kind, data.name, data.type, writes=tuple(unwritten)), bands)


# ------------------------------------------------------------------------------------------------------------- from signatures


@dataclass(frozen=True)
class KeyUse:
    """State keys and networks that a component's options name, found by the annotations of its signature."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    @classmethod
    def of(cls, section: Component, trained: tuple[str, ...]) -> KeyUse:
        """What the component uses. A network option of a loss that is not given stands for the networks that the step trains."""
        if section.component not in section.REGISTRY:
            return cls()
        entry = section.REGISTRY.find(section.component)
        found = cls._of_entry(entry, section.options, trained)
        subtype = section.options.get("subtype")
        if entry.accepts_any and isinstance(subtype, str) and subtype in INJECTORS:  # options are handed on to it
            inner = cls._of_entry(INJECTORS.find(subtype), section.options, trained)
            found = cls(
                tuple(dict.fromkeys([*found.reads, *inner.reads])),
                found.writes,
                tuple(dict.fromkeys([*found.networks, *inner.networks])),
                found.options | inner.options,
            )
        return found

    @classmethod
    def _of_entry(cls, entry: Entry, options: Mapping[str, Any], trained: tuple[str, ...]) -> KeyUse:
        reads: list[str] = []
        writes: list[str] = []
        networks: list[str] = []
        used = set()
        for parameter in entry.parameters:
            name = yaml_name(parameter.name)
            words = {node.id for node in ast.walk(ast.parse(parameter.annotation)) if isinstance(node, ast.Name)}
            value = options.get(name, None if parameter.required else parameter.default)
            if words & {"StateIn", "StateIns"}:
                reads += _keys(value)
            elif words & {"StateOut", "StateOuts"}:
                writes += _keys(value)
            elif "NetworkName" in words:
                networks += [value] if isinstance(value, str) else trained
            else:
                continue
            used.add(name)
        for template in entry.attributes.get("derived_outputs", ()):
            texts = {key: value for key, value in options.items() if isinstance(value, str)}
            if all(name in texts for name in _placeholders(template)):
                writes.append(template.format(**texts))
        first, second, third = (tuple(dict.fromkeys(each)) for each in (reads, writes, networks))
        return cls(first, second, third, frozenset(used))


def _placeholders(template: str) -> list[str]:
    return [piece.partition("}")[0] for piece in template.split("{")[1:]]


def _keys(value: Any) -> list[str]:
    return list(_walk(value))


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value != "None":  # stands for no value
            yield value
    elif isinstance(value, Mapping):  # names of arguments to keys
        yield from _walk(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk(item)
