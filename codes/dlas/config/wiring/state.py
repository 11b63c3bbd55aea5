"""State keys: who writes them, who reads them, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dlas.config.problems import Problem
from dlas.config.schema import Config, DatasetConfig
from dlas.config.source import Mark
from dlas.config.typespec import Cursor
from dlas.config.wiring.components import Facts, Reference, at, chosen, entry_of, facts
from dlas.config.wiring.gates import Window, first_uncovered, window_of
from dlas.registry import DATASETS, nearest

Place = tuple[Mark, str]


@dataclass(frozen=True)
class _Writer:
    title: str
    place: Cursor
    window: Window
    evaluation_only: bool = False


@dataclass
class _State:
    """What has been written so far. `open`: something unknown has written, too."""

    open: bool = False
    writers: dict[str, list[_Writer]] = field(default_factory=dict)

    def covers(self, key: str) -> bool:
        return self.open or key in self.writers


def check_state(config: Config, problems: list[Problem], training: bool) -> set[Place]:
    """Notes keys that are read before they are written, written twice, or written for nothing.

    Returns:
        The places that have such a problem.
    """
    if config.steps is None or config.datasets is None or config.eval is None:
        return set()  # the schema has refused the section
    checker = _Checker(config, problems)
    if training:
        checker.training()
    for name, dataset in config.datasets.items():
        if name != "train":
            checker.evaluation(dataset)
    if training:
        checker.unread()
    return checker.said


class _Checker:
    def __init__(self, config: Config, problems: list[Problem]) -> None:
        self.config = config
        self.problems = problems
        self.end = Window(before=config.train.niter) if config.train and config.train.niter else Window()
        self.said: set[Place] = set()  # places that have a problem already
        self.read: set[str] = set()
        self.later = self._all_writers()
        self.unknown_readers = False

    # ------------------------------------------------------------------------------------------------------------- training

    def training(self) -> None:
        """Follows the steps of an iteration."""
        dataset = self.config.datasets.get("train")
        state = self._provided(dataset)
        for step in self.config.steps.values():
            window = window_of(step, every=False)
            state.open |= step.damaged
            for section in (step.injectors or {}).values():
                if section.eval:
                    continue
                found = facts(section, self.problems)
                own = window & window_of(section)
                self._check_reads(found, own, state)
                self._write(found, own, state)
            trains = window & Window(every=step.every or 1)
            for loss in (step.losses or {}).values():
                self._check_reads(facts(loss, self.problems), trains & window_of(loss), state)
        self._check_visuals(state)

    def _check_reads(self, found: Facts, window: Window, state: _State) -> None:
        self.unknown_readers |= found.entry is None
        window = window & self.end
        for reference in found.reads:
            self.read.add(reference.name)
            writers = state.writers.get(reference.name, [])
            if not writers and not state.open:
                self._note(reference, *self._never_written(reference.name, state))
            elif writers and window.first is not None:
                missing = first_uncovered(window, [w.window for w in writers])
                if missing is not None and not state.open:
                    self._note(reference, *_not_yet(reference.name, missing, writers))

    def _never_written(self, key: str, state: _State) -> tuple[str, str]:
        later = self.later.get(key)
        if later is not None and later.evaluation_only:
            what = f"nothing writes '{key}' in training: {later.title} runs in evaluation only ({later.place.mark})"
            return what, "remove its 'eval: true', or write the key in training, too"
        if later is not None:
            return (
                f"'{key}' is read before {later.title} writes it ({later.place.mark})",
                "steps, and the injectors of a step, run in the order of the file; losses run last",
            )
        return f"nothing writes the state key '{key}'", _keys_fix(key, state.writers)

    def _write(self, found: Facts, window: Window, state: _State) -> None:
        state.open |= found.entry is None or not found.complete
        for reference in found.writes:
            for other in state.writers.get(reference.name, []):
                if (other.window & window & self.end).first is not None:
                    what = f"'{reference.name}' is written by {other.title}, too ({other.place.mark})"
                    self._note(reference, what, "a key is written once: rename one of the two")
                    break
            state.writers.setdefault(reference.name, []).append(_Writer(found.title, reference.place, window))

    def _check_visuals(self, state: _State) -> None:
        logger = self.config.logger
        if logger is None:
            return
        keys = logger.given.get("visuals") or []
        for position, key in enumerate(keys if len(keys) == len(logger.visuals or []) else []):
            self.read.add(key)
            if not state.covers(key):
                place = at(logger, "visuals", self.problems).item(keys, position)
                what = f"nothing writes the state key '{key}', so there are no pictures of it"
                place.note(what, _keys_fix(key, state.writers), "warning")
        for key in logger.audio or ():
            self.read.add(key)
            if not state.covers(key):
                what = f"nothing writes the state key '{key}', so it is never heard"
                at(logger, "audio", self.problems).note(what, _keys_fix(key, state.writers), "warning")

    def unread(self) -> None:
        """Warns of injectors whose results nobody reads."""
        evaluation = self.config.eval
        self.read |= {evaluation.output_state, evaluation.target_state, evaluation.input_state}
        self.read |= {*(evaluation.values or []), *(evaluation.strips or [])}
        for section in evaluation.injectors.values() if evaluation.injectors else ():
            self.read |= {reference.name for reference in facts(section, self.problems).reads}
        if self.unknown_readers or any(step.damaged for step in self.config.steps.values()):
            return
        for step in self.config.steps.values():
            for section in (step.injectors or {}).values():
                found = facts(section, self.problems)
                outputs = [reference.name for reference in found.writes]
                if outputs and found.complete and not self.read & set(outputs):
                    place = found.writes[0].place
                    if (place.mark, place.path) not in self.said:
                        place.note(
                            f"nothing reads '{outputs[0]}'", "remove the injector, or correct who should read it", "warning"
                        )

    # ----------------------------------------------------------------------------------------------------------- evaluation

    def evaluation(self, dataset: DatasetConfig) -> None:
        """Follows the injectors of an evaluation on one data set."""
        state = self._provided(dataset)
        state.open |= self.config.eval.damaged or any(step.damaged for step in self.config.steps.values())
        for _, section in self.config.evaluation_injectors():
            if section.train:
                continue
            found = facts(section, self.problems)
            self.unknown_readers |= found.entry is None
            for reference in found.reads:
                self.read.add(reference.name)
                if not state.covers(reference.name):
                    self._note(
                        reference, f"in evaluation nothing writes '{reference.name}'", self._evaluation_fix(reference, state)
                    )
            state.open |= found.entry is None or not found.complete
            for reference in found.writes:
                others = state.writers.get(reference.name, [])
                if others:
                    what = f"in evaluation '{reference.name}' is written by {others[0].title}, too ({others[0].place.mark})"
                    fix = "gates do not count there, but for 'train: true' and 'eval: true': rename one, or gate it so"
                    self._note(reference, what, fix)
                state.writers.setdefault(reference.name, []).append(_Writer(found.title, reference.place, Window()))
        self._check_eval_keys(dataset, state)

    def _evaluation_fix(self, reference: Reference, state: _State) -> str:
        if reference.name in self.later and reference.name not in state.writers:
            return (
                f"{self.later[reference.name].title} does not run there: evaluation runs the injectors of the step that writes "
                "'eval.output_state', or those under 'eval.injectors', without those of 'train: true'"
            )
        return _keys_fix(reference.name, state.writers)

    def _check_eval_keys(self, dataset: DatasetConfig, state: _State) -> None:
        section = self.config.eval
        for name in ("values", "strips"):
            for position, key in enumerate(getattr(section, name) or []):
                if not state.covers(key):
                    keys = section.given.get(name) or []
                    place = at(section, name, self.problems)
                    place = place.item(keys, position) if isinstance(keys, list) and position < len(keys) else place
                    self._note(Reference(key, name, place), *self._unwritten_in_evaluation(key, dataset, state))
        for name in ("output_state", "input_state", "target_state"):
            key = getattr(section, name)
            if key is None or state.covers(key):
                continue
            place = at(section, name, self.problems)
            if name == "input_state" and not chosen(section, name):
                continue
            if name == "target_state" and not chosen(section, name):
                if any("reference" not in (section.metric_options or {}).get(metric, {}) for metric in section.metrics or []):
                    what = f"gives no '{key}' (eval.target_state), so no metric is measured on it"
                    Cursor(dataset.mark, dataset.yaml_path, self.problems).note(
                        what, "'metrics: []' under 'eval' if that is meant", "warning"
                    )
                continue
            self._note(Reference(key, name, place), *self._unwritten_in_evaluation(key, dataset, state))

    def _unwritten_in_evaluation(self, key: str, dataset: DatasetConfig, state: _State) -> tuple[str, str]:
        label = dataset.yaml_path.rpartition(".")[2]
        return f"in evaluation on '{label}' nothing writes '{key}'", _keys_fix(key, state.writers)

    # --------------------------------------------------------------------------------------------------------------- shared

    def _provided(self, dataset: DatasetConfig | None) -> _State:
        entry = entry_of(dataset) if dataset is not None else None
        if dataset is None or entry is None:
            return _State(open=True)
        # What it always gives, and what its options say that it gives.
        found = facts(dataset, self.problems)
        keys = [*entry.attributes.get("provides", ()), *(reference.name for reference in found.writes)]
        inner = dataset.options.get(entry.attributes.get("passes_on", ""))
        inner_entry = DATASETS.find(inner["mode"]) if inner else None
        if inner_entry is not None:
            keys += inner_entry.attributes.get("provides", ())
        if not keys or not found.complete:
            return _State(open=True)
        label = dataset.yaml_path.rpartition(".")[2]
        writer = _Writer(f"the data set '{label}'", Cursor(dataset.mark, dataset.yaml_path, self.problems), Window())
        return _State(writers={key: [writer] for key in keys})

    def _all_writers(self) -> dict[str, _Writer]:
        found: dict[str, _Writer] = {}
        for step in self.config.steps.values():
            for section in (step.injectors or {}).values():
                each = facts(section, self.problems)
                for reference in each.writes:
                    found.setdefault(reference.name, _Writer(each.title, reference.place, Window(), section.eval is True))
        return found

    def _note(self, reference: Reference, message: str, fix: str) -> None:
        place = (reference.place.mark, reference.place.path)
        if place not in self.said:
            self.said.add(place)
            reference.place.note(message, fix)


def _not_yet(key: str, step: int, writers: list[_Writer]) -> tuple[str, str]:
    times = "; ".join(f"{writer.title} writes it {writer.window} ({writer.place.mark})" for writer in writers)
    return f"at iteration {step} nothing has written '{key}': {times}", "give the reader the same gates, or open the writer's"


def _keys_fix(key: str, known: Iterable[str]) -> str:
    close = nearest(key, known)
    return f"did you mean '{close}'?" if close else f"keys there: {', '.join(sorted(known)) or 'none'}"
