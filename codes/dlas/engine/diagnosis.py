"""Runs a step that went wrong once more and names where: batch, injector, layer, loss, gradient, samples."""

from __future__ import annotations

import math
import re
import traceback
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dlas.context import Context
from dlas.engine.device import seed_micro_batch
from dlas.engine.findings import Contents, Diagnosis, Fault, Sample, contents, tensors
from dlas.engine.microbatch import MicroBatch
from dlas.engine.probes import Probe, label
from dlas.engine.step import State, TrainingStep
from dlas.engine.untouched import untouched

__all__ = ["Diagnosis", "diagnose", "trace_gradient"]

_SHOWN = 3  # of the largest activations and gradients
_LARGE = 1e6  # no healthy network has such activations or gradients


def diagnose(step: TrainingStep, parts: list[MicroBatch], contexts: list[Context], written: Collection[str] = ()) -> Diagnosis:
    """Repeats forward and backward of a step and looks at everything on the way. Changes nothing; slow.

    The repetition draws the random numbers of the original. Under fp16, where a gradient that overflowed has lowered the loss
    scale since, the scale before is tried too.

    Args:
        step: the step.
        parts: its micro-batches, with the entries that were there before it ran.
        contexts: theirs.
        written: keys that earlier steps of the iteration wrote; the others are the data set's.

    Returns:
        What was found. An error that the step raises is among the faults.
    """
    scale = step.scaler.get_scale() if step.scaler is not None else None
    found = _Repetition(step, parts, contexts, written, scale).run()
    if scale is not None and step.scaler is not None and not found.reproduced:
        before = scale / step.scaler.get_backoff_factor()
        again = _Repetition(step, parts, contexts, written, before).run()
        if again.reproduced:
            again.notes.append(
                f"only at the loss scale {before:g}; at {scale:g}, to which the scaler has gone down since, all is finite. Now "
                "and then this is how fp16 works and no fault"
            )
            return again
    return found


def trace_gradient(step: TrainingStep, parts: list[MicroBatch], contexts: list[Context]) -> str:
    """Repeats a step under autograd's anomaly mode.

    Returns:
        The operation whose gradient is nan with the traceback of its forward call, or that there is none.
    """
    networks, contexts = _bare(contexts)
    modules = [*networks.values(), *(each.loss for each in step.losses)]
    with warnings.catch_warnings(record=True) as caught, untouched(step, modules, step.precision.device):
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly(check_nan=True):
                for part, context in zip(parts, contexts, strict=True):
                    seed_micro_batch(context, step.name, step.precision.device)
                    step._forward_backward(replace(part, state=dict(part.state)), context, step.trains(context.step))
        except RuntimeError as error:
            told = [_innermost(str(each.message)) for each in caught if "forward call" in str(each.message)]
            return "\n".join([*told, str(error)])
    return "no operation of the backward pass makes a nan (infinite values are not looked for)"


class _Repetition:
    def __init__(
        self,
        step: TrainingStep,
        parts: list[MicroBatch],
        contexts: list[Context],
        written: Collection[str],
        scale: float | None,
    ) -> None:
        self.step = step
        self.parts = parts
        self.networks, self.contexts = _bare(contexts)
        self.written = written
        self.scale = scale
        self.device = step.precision.device
        self.modules: dict[str, nn.Module] = {**self.networks, **{f"loss {each.name}": each.loss for each in step.losses}}
        self.faults: list[Fault] = []
        self.activations: dict[str, float] = {}
        self.result = Diagnosis(
            step.name,
            contexts[0].step,
            str(self.device),
            step.precision.name,
            [len(part.positions) for part in parts],
            loss_scale=scale,
        )

    def run(self) -> Diagnosis:
        result = self.result
        modules = self.modules.items()
        result.weights = _not_finite((f"{n}.{path}", each) for n, module in modules for path, each in module.named_parameters())
        result.buffers = _not_finite((f"{n}.{path}", each) for n, module in modules for path, each in module.named_buffers())
        with untouched(self.step, self.modules.values(), self.device):
            for number, (part, context) in enumerate(zip(self.parts, self.contexts, strict=True)):
                seed_micro_batch(context, self.step.name, self.device)
                try:
                    _Part(self, number, part, context).run()
                except Exception as error:
                    self.faults.append(_error(error, number))
                    break
            gradients = self._gradients()
        result.faults = sorted(self.faults, key=lambda fault: not fault.source)
        if result.reproduced:
            result.largest = _top(self.activations) | _top(gradients)
        result.notes = _advice(result)
        return result

    def _gradients(self) -> dict[str, float]:
        """The largest gradient of each parameter. Notes a norm that is not finite though each of them is."""
        largest: dict[str, float] = {}
        for name, network in self.networks.items():
            for path, parameter in network.named_parameters():
                if parameter.grad is not None:
                    largest[f"gradient of {name}.{path}"] = contents(parameter.grad).largest
        gradients = [p.grad for p in self.step.parameters if p.grad is not None]
        if gradients and not any(fault.kind in ("loss", "gradient", "sum", "error") for fault in self.faults):
            norm = float(nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                what = "each gradient is finite, but their squares are too large to be added up"
                self.faults.append(Fault("sum", "the norm of the gradient", what))
        return largest


class _Part:
    """One micro-batch of a repetition."""

    def __init__(self, whole: _Repetition, number: int, part: MicroBatch, context: Context) -> None:
        self.whole = whole
        self.step = whole.step
        self.number = number
        self.part = part
        self.context = context
        self.state = _Watched(part.state)
        self.probe = Probe(whole.modules, len(part.positions))
        self.spoilt: dict[str, Fault] = {}  # state keys that hold what is not finite
        self.harmful: set[str] = set()  # those that something read which then was not finite either

    def run(self) -> None:
        faults = self.whole.faults
        first = len(faults)
        self._batch()
        trains = self.step.trains(self.context.step)
        with torch.set_grad_enabled(trains):
            with self.step.precision.autocast(), self.probe.forward():
                for injector in self.step.injectors:
                    self._unit(f"injector '{injector.name}'", lambda injector=injector: self._injector(injector))
                total = self._losses() if trains else None
            for name, value in self.probe.largest.items():
                self.whole.activations[name] = max(value, self.whole.activations.get(name, 0.0))
            if total is not None and total.requires_grad and math.isfinite(float(total.detach())):
                self._backward(total)
        for key, fault in self.spoilt.items():
            # What is read and leaves every reader finite was meant so, for instance a mask of -inf.
            if key in self.state.ever and key not in self.harmful:
                faults.remove(fault)
                faults.append(replace(fault, source=False, text=f"{fault.text} (harmless to what reads it)"))
        # Where entries of the batch are at fault, the rest follows from them.
        if any(fault.source and fault.kind == "batch" for fault in faults[first:]):
            for fault in faults[first:]:
                fault.source = fault.source and fault.kind == "batch"

    def _batch(self) -> None:
        for key, value in self.part.state.items():
            for tensor in tensors(value):
                what = contents(tensor, len(self.part.positions))
                if not what.finite:
                    earlier = key in self.whole.written
                    whose = "written by an earlier step" if earlier else "as the data set gives it"
                    self.spoilt[key] = self._fault("batch", f"'{key}' of the batch", f"{what.text()}, {whose}", what)
                    break

    def _unit(self, name: str, run: Any) -> None:
        self.probe.begin(name)
        self.state.reads.clear()
        run()
        self.state.ever |= self.state.reads

    def _injector(self, injector: Any) -> None:
        new = injector(self.state, self.context)
        self.probe.end(tensors(new))
        found = {}
        for key, value in new.items():
            for tensor in tensors(value):
                what = contents(tensor, len(self.part.positions))
                if not what.finite:
                    found[key] = what
                    break
        if found:
            source = self._blame(f"run by injector '{injector.name}'")
            for key, what in found.items():
                self.spoilt[key] = self._fault(
                    "state", f"'{key}', which injector '{injector.name}' writes", what.text(), what, source
                )
        self.state.update(new)

    def _blame(self, where: str) -> bool:
        """Notes the layers at fault in the present unit. True if the unit itself is: it read finite values, and no layer is."""
        bad = [key for key in self.state.reads if key in self.spoilt]
        self.harmful.update(bad)
        culprits = self.probe.culprits()[:_SHOWN]
        for number, call in enumerate(culprits):
            assert call.output is not None
            own = call.own_faults()
            because = f"its own {own} spoils it" if own else f"input finite, up to {call.inputs.largest:.3g}"
            text = f"output {call.output.text()}; {because} ({where})"
            self._fault("layer", f"layer {label(call)}", text, call.output, source=number == 0)
        return not culprits and not bad

    def _losses(self) -> Tensor | None:
        total: Tensor | None = None
        for each in self.step.losses:
            if each.gate(self.context.step):
                values: list[Tensor] = []
                self._unit(f"loss '{each.name}'", lambda each=each, values=values: self._loss(each, values))
                total = values[0] * each.weight if total is None else total + values[0] * each.weight
        return total

    def _loss(self, each: Any, values: list[Tensor]) -> None:
        result = each.loss(self.state, self.context)
        value = result[0] if isinstance(result, tuple) else result
        self.probe.end([value])
        values.append(value)
        number = float(value.detach())
        self.whole.result.losses.setdefault(each.name, []).append(number)
        if not math.isfinite(number):
            reads = set(self.state.reads)
            source = self._blame(f"run by loss '{each.name}'")
            ranges = ", ".join(f"'{key}' {self._range(key)}" for key in sorted(reads) if self._range(key))
            text = f"{number}" + (f"; it reads {ranges}" if source and ranges else "")
            fault = self._fault("loss", f"loss '{each.name}'", text, contents(value), source)
            if source:
                fault.samples = self._samples(self._rows_of_loss(each))

    def _range(self, key: str) -> str:
        found = [tensor for tensor in tensors(dict.get(self.state, key)) if tensor.is_floating_point() and tensor.numel()]
        if not found:
            return ""
        low, high = min(float(t.detach().min()) for t in found), max(float(t.detach().max()) for t in found)
        return f"in [{low:.3g}, {high:.3g}]"

    def _rows_of_loss(self, each: Any) -> list[int]:
        """The samples that give a value which is not finite when the loss sees them alone, if it can be computed so."""
        size = len(self.part.positions)
        bad = []
        with torch.no_grad():
            for row in range(size):
                alone = State({key: _one(value, row, size) for key, value in self.state.items()})
                context = replace(self.context, positions=[self.part.positions[row]])
                try:
                    result = each.loss(alone, context)
                except Exception:  # a loss over the batch as a whole
                    return []
                value = result[0] if isinstance(result, tuple) else result
                if not bool(value.isfinite().all()):
                    bad.append(row)
        return bad

    def _backward(self, total: Tensor) -> None:
        total = total * self.part.share
        if self.whole.scale is not None:
            total = total * torch.tensor(self.whole.scale, device=total.device)
            if not math.isfinite(float(total.detach())):
                self._fault(
                    "sum", "the sum of the losses", f"overflows times the loss scale {self.whole.scale:g}", contents(total)
                )
                return
        before = self._bad_gradients()
        with self.probe.backward():
            total.backward()
        bad = {name: what for name, what in self._bad_gradients().items() if name not in before}
        if self.probe.gradient is not None:
            operation, owner, what, given = self.probe.gradient
            text = f"{operation} gives {what.text()}; what it was given is finite, up to {given.largest:.3g}"
            self._fault("gradient", f"gradient in {owner}", text, what)
        elif bad or self.probe.reached is not None:
            where = "the sum over the micro-batches"
            if self.probe.reached is not None:
                operation, owner = self.probe.reached
                where = f"the sum of gradients that reach {operation} in {owner}"
            self._fault("sum", where, "not finite, though each summand is", next(iter(bad.values()), None))
        if bad:
            name, what = next(iter(bad.items()))
            more = f", and {len(bad) - 1} more parameters" if len(bad) > 1 else ""
            self._fault("gradient", f"gradient of {name}", what.text() + more, None, source=False)

    def _bad_gradients(self) -> dict[str, Contents]:
        found = {}
        for name, network in self.whole.networks.items():
            for path, parameter in network.named_parameters():
                if parameter.grad is not None:
                    what = contents(parameter.grad)
                    if not what.finite:
                        found[f"{name}.{path}"] = what
        return found

    def _fault(self, kind: Any, name: str, text: str, what: Contents | None, source: bool = True) -> Fault:
        samples = self._samples(what.rows) if what is not None else []
        fault = Fault(kind, name, text, self.number, source, samples)
        self.whole.faults.append(fault)
        return fault

    def _samples(self, rows: Sequence[int]) -> list[Sample]:
        size = len(self.part.positions)
        names = {
            key: value
            for key, value in self.part.state.items()
            if isinstance(value, list) and len(value) == size and all(isinstance(item, str) for item in value)
        }
        offset = sum(len(part.positions) for part in self.whole.parts[: self.number])
        return [
            Sample(offset + row, self.part.positions[row], {key: value[row] for key, value in names.items()}) for row in rows
        ]


class _Watched(State):
    """A state that remembers what was read."""

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self.reads: set[str] = set()
        self.ever: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.reads.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.reads.add(key)
        return super().get(key, default)


def _bare(contexts: list[Context]) -> tuple[dict[str, nn.Module], list[Context]]:
    """Contexts whose networks are not wrapped: other processes do not take part in a repetition."""
    networks = {
        name: network.module if isinstance(network, DistributedDataParallel) else network
        for name, network in contexts[0].networks.items()
    }
    return networks, [replace(context, networks=networks) for context in contexts]


def _advice(found: Diagnosis) -> list[str]:
    cause = found.cause
    if cause is None or cause.kind == "error":
        return []
    if cause.kind == "batch":
        return ["mend or remove what this sample is made of"] if cause.samples else []
    notes = []
    if found.weights:
        notes.append("weights are spoilt already: an earlier update did that; go back to a checkpoint from before")
    elif any(value > _LARGE for value in found.largest.values()):
        notes.append(
            "values this large come from weights that have grown: try a lower learning rate, warmup_iter or clip_grad_eps"
        )
    if found.precision == "fp16":
        notes.append("fp16 ends at 65504; bf16 and fp32 have more room: `dlas replay --precision` shows whether that helps")
    return notes


def _innermost(text: str) -> str:
    """A traceback of autograd without the frames of the engine and of torch's way of calling modules."""
    head, *frames = re.split(r"^(?=  File )", text.partition("(Triggered internally")[0], flags=re.MULTILINE)
    engine = [number for number, frame in enumerate(frames) if "/dlas/engine/" in frame.replace("\\", "/")]
    kept = [frame for frame in frames[engine[-1] + 1 if engine else 0 :] if "nn/modules/module.py" not in frame]
    return (head + "".join(kept)).rstrip()


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    found = ((name, contents(tensor)) for name, tensor in named)
    return {name: what.text() for name, what in found if not what.finite}


def _one(value: Any, row: int, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[row : row + 1] if value.dim() > 0 and value.shape[0] == size else value
    return value[row : row + 1] if isinstance(value, list) and len(value) == size else value


def _error(error: Exception, part: int) -> Fault:
    frames = list(_frames(error))
    where = f" [{frames[-1]}]" if frames else ""
    return Fault("error", type(error).__name__, f"{error}{where}", part)


def _frames(error: BaseException) -> Iterator[str]:
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    for frame in traceback.extract_tb(deepest.__traceback__):
        yield f"{frame.filename}:{frame.lineno}"


def _top(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: item[1], reverse=True)[:_SHOWN])
