"""Watching a forward pass layer by layer and a backward pass operation by operation, for values that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from dlas.engine.findings import Contents, contents, join, tensors
from dlas.losses.base import Loss


@dataclass(eq=False)
class Call:
    """One call of a module."""

    name: str
    module: nn.Module
    parent: Call | None
    inputs: Contents
    output: Contents | None = None

    @property
    def spoilt(self) -> bool:
        """Its output is not finite, or it never came."""
        return self.output is None or not self.output.finite

    def own_faults(self) -> str:
        """Which of the module's own parameters are not finite, and what they hold; in evaluation mode its buffers too.

        In training, running statistics are written and not read.
        """
        buffers = [] if self.module.training else self.module.named_buffers(recurse=False)
        own = [*self.module.named_parameters(recurse=False), *buffers]
        found = [(name, contents(tensor)) for name, tensor in own]
        return ", ".join(f"{name} ({what.text()})" for name, what in found if not what.finite)


class Probe:
    """Hooks on all modules, and on the graph that they leave.

    Which module an operation of the graph belongs to is told by walking back from what goes into each module and what comes out
    of it. Modules are not wrapped in anything, so layers that work in place do so as ever.

    Args:
        modules: networks and losses by the name they get in reports. Of a loss only the modules inside are watched: what it
            does itself is put to it as a unit.
        samples: size of the micro-batch.
    """

    def __init__(self, modules: Mapping[str, nn.Module], samples: int) -> None:
        self.samples = samples
        self.calls: list[Call] = []  # of the present unit, in the order in which they end
        self.largest: dict[str, float] = {}
        self.gradient: tuple[str, str, Contents, Contents] | None = None
        self.reached: tuple[str, str] | None = None
        self._modules = modules
        self._stack: list[Call] = []
        self._unit = ""
        self._owners: dict[Node, str] = {}

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Watches modules; not open in the backward pass, where gradient checkpointing calls them again."""
        handles: list[Any] = []
        seen: set[int] = set()
        try:
            for name, network in self._modules.items():
                for path, module in network.named_modules():
                    if id(module) in seen or isinstance(module, Loss):
                        continue
                    seen.add(id(module))
                    handles += self._attach(f"{name}.{path}" if path else name, module)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _attach(self, name: str, module: nn.Module) -> list[Any]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = list(tensors([args, kwargs]))
            self._claim(given, self._owner())
            self._stack.append(Call(name, module, self._stack[-1] if self._stack else None, self._join(given)))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = list(tensors(output))
            self._claim(given, self._owner())
            while (call := self._stack.pop()).module is not module:
                pass  # it failed, and the module around it went on all the same
            call.output = self._join(given)
            self.calls.append(call)
            self.largest[call.name] = max(call.output.largest, self.largest.get(call.name, 0.0))

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def _join(self, given: Iterable[Tensor]) -> Contents:
        return join([contents(tensor, self.samples) for tensor in given])

    def _owner(self) -> str:
        return label(self._stack[-1]) if self._stack else self._unit

    def begin(self, unit: str) -> None:
        """An injector or a loss begins."""
        self._unit = unit
        self._stack.clear()
        self.calls.clear()

    def end(self, results: Iterable[Tensor]) -> None:
        """It is done and has given `results`."""
        self._claim(results, self._unit)

    def culprits(self) -> list[Call]:
        """Innermost calls of the present unit that spoil finite inputs, in order, where nothing around them mends it."""
        found: list[Call] = []
        explained: set[Call] = set()
        for call in self.calls:
            outer = list(_ancestors(call))
            if call in explained or not call.spoilt or not call.inputs.finite or not all(each.spoilt for each in outer):
                continue
            found.append(call)
            explained.update(outer)
        return found

    def _claim(self, given: Iterable[Tensor], owner: str) -> None:
        waiting = [tensor.grad_fn for tensor in given]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in self._owners:
                self._owners[node] = owner
                waiting += [following for following, _ in node.next_functions]

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Watches operations: `gradient` is the first that makes of a finite gradient one that is not.

        `reached` is the first that is given one that is not: where finite gradients from several sides were added up.
        """
        handles = [node.register_hook(self._hook(node, owner)) for node, owner in self._owners.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._owners.clear()

    def _hook(self, node: Node, owner: str) -> Any:
        def look(outgoing: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> None:
            if self.gradient is not None or self.reached is not None:
                return
            given = self._join([tensor for tensor in incoming if tensor is not None])
            if not given.finite:
                self.reached = (node.name(), owner)
                return
            made = [contents(tensor, self.samples) for tensor in outgoing if tensor is not None]
            bad = [each for each in made if not each.finite]
            if bad:
                self.gradient = (node.name(), owner, bad[0], given)

        return look


def label(call: Call) -> str:
    """What a report calls the module of a call."""
    return f"{call.name} ({type(call.module).__name__})"


def _ancestors(call: Call) -> Iterator[Call]:
    while call.parent is not None:
        call = call.parent
        yield call
