"""Networks compiled by torch.compile, each by itself and in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from dlas.config import Config
from dlas.config.schema import CompileConfig
from dlas.engine.out_of_memory import is_out_of_memory
from dlas.errors import ConfigurationError, TrainingError
from dlas.observe.console import LOGGER, to_log_files

if TYPE_CHECKING:
    from dlas.engine.compile_records import Break, Compiled

_SHOWN = 5  # graph breaks, and reasons of recompilations
_GAVE_UP = (
    "torch has compiled so many versions of it that it takes no more, and runs what is new without compiling it from now on; "
    "the last one was asked for because of: %s. Give it inputs of one size (crop sizes, buckets, lengths), write 'compile: "
    "{dynamic: true}', or leave it out of 'compile.networks'"
)
_WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


class CompilationError(TrainingError):
    """A network cannot be compiled; `reason` says why, in a line."""

    def __init__(self, name: str, reason: str, others: list[str]) -> None:
        without = f"'compile: {{networks: [{', '.join(others)}]}}'" if others else "'compile: false'"
        super().__init__(f"network '{name}' cannot be compiled: {reason}. Leave it out: {without}")
        self.reason = reason


@dataclass
class _Record:
    """What was compiled for a network."""

    called: bool = False
    codes: set[str] = field(default_factory=set)
    graphs: int = 0
    recompilations: int = 0
    seconds: float = 0.0
    breaks: dict[Break, None] = field(default_factory=dict)  # a set that keeps its order
    news: bool = False  # what follows is new since the last report: something was compiled, again, or not any more
    again: list[Compiled] = field(default_factory=list)
    gave_up: list[Compiled] = field(default_factory=list)

    def take(self, compiled: Compiled) -> None:
        """Takes note of one."""
        self.seconds += compiled.seconds
        self.graphs += compiled.is_graph
        if compiled.gave_up:
            self.gave_up.append(compiled)
        elif compiled.guard and (compiled.code in self.codes or self.called):
            self.recompilations += 1
            self.again.append(compiled)
        else:
            self.news = True
        self.codes.add(compiled.code)

    def report(self, name: str) -> None:
        """Logs what is new."""
        if self.news:
            breaks = "".join(f"\n  {each.place}: {each.reason}" for each in list(self.breaks)[:_SHOWN])
            more = f"\n  and {len(self.breaks) - _SHOWN} more" if len(self.breaks) > _SHOWN else ""
            LOGGER.info("network %s compiled: %s%s%s", name, self.words(), breaks and ":" + breaks, more)
        first = self.recompilations - len(self.again) + 1
        for number, each in enumerate(self.again[:_SHOWN], start=first):
            text = "network %s compiled again (recompilation %d, %.1f s): %s: %s"
            LOGGER.info(text, name, number, each.seconds, each.code, each.guard)
        for each in self.gave_up:
            LOGGER.warning("network %s: %s", name, _GAVE_UP % each.guard)
        self.news, self.again, self.gave_up = False, [], []

    def words(self) -> str:
        """In a line."""
        return f"{_count(self.graphs, 'graph')} in {self.seconds:.1f} s, {_count(len(self.breaks), 'graph break')}"


class Compilation:
    """The compiled networks of a run: what was compiled when, and whether the compiled code is used at present.

    Args:
        section: how to compile.
        networks: those to compile, by name.
        device: of the run.

    Raises:
        ConfigurationError: torch does not have the compiler.

    Attributes:
        count: of functions that were compiled so far, for each version once.
    """

    def __init__(self, section: CompileConfig, networks: Mapping[str, nn.Module], device: torch.device) -> None:
        self.section = section
        self.count = 0
        self._plain = False
        self._evaluating = False
        self._cuda_graphs = device.type == "cuda" and section.mode in _WITH_CUDA_GRAPHS
        self._records = {name: _Record() for name in networks}
        self._owners: dict[str, str] = {}  # network by number of a compilation
        self._told = 0  # recompilations
        if not networks:
            return
        from dlas.engine import compile_records  # torch's compiler takes a second to be imported

        self._torch = compile_records
        known = torch.compiler.list_backends(exclude_tags=())
        if section.backend not in known:
            raise ConfigurationError(
                f"compile.backend: torch has no compiler '{section.backend}' here; it has: {', '.join(known)}"
            )
        compile_records.listen()
        compile_records.take()  # what others have left
        if section.mode in _WITH_CUDA_GRAPHS and not self._cuda_graphs:
            LOGGER.warning(
                "compile.mode: %s: CUDA graphs do nothing on this device (%s); 'mode: %s' is the same without them",
                section.mode,
                device,
                "default" if section.mode == "reduce-overhead" else "max-autotune-no-cudagraphs",
            )
        for name, network in networks.items():
            self._compile(name, network)

    def _compile(self, name: str, network: nn.Module) -> None:
        section = self.section
        mode = section.mode if section.backend == "inductor" and section.mode != "default" else None
        network.compile(
            backend=section.backend,
            mode=mode,
            dynamic=section.dynamic,
            fullgraph=section.fullgraph,
            **self._torch.own_limit(),
        )
        compiled, plain = network._compiled_call_impl, network._call_impl
        assert compiled is not None

        def call(*inputs: Any, **options: Any) -> Any:
            if self._plain:
                return plain(*inputs, **options)
            if self._cuda_graphs and self._evaluating:
                torch.compiler.cudagraph_mark_step_begin()
            record, before = self._records[name], self._torch.frames()
            if not record.called:
                LOGGER.info("network %s is compiled now, which may take minutes", name)
            try:
                result = compiled(*inputs, **options)
            except Exception as error:
                if self._torch.may_be_its_own(error):
                    plain(*inputs, **options)  # which fails with the error as it is
                self._explain(name, error)
                raise
            if self._torch.frames() != before:
                self._take(name)
            record.called = True
            return _copied(result) if self._cuda_graphs else result

        network._compiled_call_impl = call

    def _explain(self, name: str, error: Exception) -> None:
        reason = None if is_out_of_memory(error) else self._torch.reason_of(error)
        if reason is None:
            return
        to_log_files(f"network '{name}' cannot be compiled", error)
        raise CompilationError(name, reason, [each for each in self._records if each != name]) from None

    def _take(self, name: str | None) -> None:
        """Takes note of what was compiled during a call of a network; of backward passes at any time."""
        compiled, breaks = self._torch.take()
        for each in compiled:
            owner = self._owners.setdefault(each.number, name) if name is not None else self._owners.get(each.number)
            if owner is not None:
                self.count += bool(each.code)
                self._records[owner].take(each)
        if name is not None:
            self._records[name].breaks |= dict.fromkeys(breaks)

    # ------------------------------------------------------------------------------------------------------------ the loop

    def begin_iteration(self) -> None:
        """An iteration begins: memory of CUDA graphs that the last one used may be used again."""
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def end_iteration(self) -> None:
        """Logs what was compiled in the iteration, if anything was."""
        if not self._records:
            return
        self._take(None)
        for name, record in self._records.items():
            record.report(name)

    def figures(self) -> dict[str, float]:
        """For a row: recompilations since the last one, if there were any."""
        total = sum(record.recompilations for record in self._records.values())
        new, self._told = total - self._told, total
        return {"compile/recompilations": float(new)} if new else {}

    def summary(self) -> list[str]:
        """What was compiled in the whole sitting, a line for each network that was called."""
        return [
            f"network {name} compiled: {record.words()}, {_count(record.recompilations, 'recompilation')}"
            if record.codes
            else f"network {name}: torch found nothing in it that it compiles"
            for name, record in self._records.items()
            if record.called
        ]

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Within it networks run as they are."""
        before, self._plain = self._plain, True
        try:
            yield
        finally:
            self._plain = before

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it networks are evaluated."""
        self._evaluating = True
        try:
            with nullcontext() if self.section.evaluation else self.plainly():
                yield
        finally:
            self._evaluating = False


def compile_networks(
    config: Config, networks: Mapping[str, nn.Module], device: torch.device, whole: bool = True
) -> Compilation:
    """Has calls of networks compiled when they are first made, as the file says; names of weights stay what they are.

    Methods other than the forward pass stay as they are, and so do copies of a network.

    Args:
        config: of the run; where it compiles nothing, nothing happens.
        networks: by name.
        device: of the run.
        whole: they are not spread over processes.

    Raises:
        ConfigurationError: they are, or torch does not have the compiler.
    """
    section = section_of(config)
    if section is None:
        return Compilation(CompileConfig(), {}, device)
    if not whole:
        raise ConfigurationError("compile: true is not possible with 'strategy: fsdp' or 'deepspeed'; leave one of them out")
    names = networks.keys() if section.networks is None else section.networks
    return Compilation(section, {name: networks[name] for name in names}, device)


def section_of(config: Config) -> CompileConfig | None:
    """How networks are compiled; None if they are not."""
    if not config.compile:
        return None
    return CompileConfig() if config.compile is True else config.compile


def _copied(value: Any) -> Any:
    """With tensors of their own: the next iteration writes over those of CUDA graphs, and meters and averages keep some."""
    return tree_map_only(Tensor, Tensor.clone, value)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"
