"""`eval.evaluators` of DL-Art-School's files: each measured one network on a data set of its own."""

from __future__ import annotations

from typing import Any

from dlas.config.announced import note_not_built
from dlas.config.legacy.actions import Found, put
from dlas.config.schema import EvalConfig
from dlas.config.source import Mark, MarkedDict
from dlas.config.typespec import Cursor, shown

_MEASURED_OTHERWISE = {
    "sr_diffusion_fid": "what is sampled is measured by 'eval.metrics: [fid]', with the injector of 'diffusion_params' under "
    "'eval.injectors', its output as 'eval.output_state', and this data set under 'datasets'",
    "single_point_pair_contrastive_eval": "distances between features of points are measured on data sets of the mode "
    "'point_pairs', one of similar and one of dissimilar points, by the injector 'feature_distance' (docs/representations.md)",
}
"""Evaluators that are left out, and what does the same here."""

_GAUSSIAN_LATENTS = ("flow_gaussian_nll", "flownet_gaussian")
_FIGURE = "gaussian_diff"


def evaluators(found: Found) -> None:
    """Evaluators become figures, or are left out where something else does the same, or announced; others are not known."""
    entries, *_ = found.holder.take(found.key)
    if entries is None or entries == {}:
        found.notice("has no effect: there are none")
        return
    if not isinstance(entries, MarkedDict):
        found.place.note(f"expected a mapping, found {shown(entries)}")
        return
    for name in entries:
        place = found.place.value(entries, name)
        kind = entries[name].get("type") if isinstance(entries[name], dict) else None
        if not isinstance(kind, str):
            place.note("an evaluator needs a type", "add 'type:'")
        elif kind in _GAUSSIAN_LATENTS:
            _gaussian_latents(name, entries[name], place, found)
        elif kind in _MEASURED_OTHERWISE:
            place.note(f"has no effect: {_MEASURED_OTHERWISE[kind]}", severity="notice")
        elif not note_not_built("evaluator", kind, place):
            place.note(f"no evaluator is called '{kind}'", "pictures are measured by 'eval.metrics'")


def _gaussian_latents(name: str, entry: MarkedDict, place: Cursor, found: Found) -> None:
    """A data set to validate on, the injector `flow_gaussian_nll`, and its output among `eval.values`."""
    network, dataset = entry.get("for"), entry.get("dataset")
    if not isinstance(network, str) or not isinstance(dataset, MarkedDict):
        place.note("needs a network ('for') and a data set ('dataset')", "add them")
        return
    mark, evaluation = place.mark, found.holder
    if "mode" not in dataset:
        dataset.put("mode", "imagefolder", mark)
    if "eval" in dataset:
        place.value(entry, "dataset").key(dataset, "eval").note(
            "has no effect: nothing reads it, nor did anything in DL-Art-School", severity="notice"
        )
        dataset.take("eval")
    if not put(found.tree, f"datasets.{name}", dataset, mark):
        place.note(f"a data set is called '{name}', too", "give the evaluator another name")
        return
    if "batch_size" in entry:
        put(found.tree, "eval.batch_size", entry["batch_size"], mark)
    injectors, written = _evaluated(found.tree, evaluation, mark)
    injectors.put(name, _mapping(mark, type="flow_gaussian_nll", generator=network, out=_FIGURE), mark)
    if not written:  # pictures are always made here
        picture = _mapping(mark, type="flow_sample", generator=network, heat=0, out=_output(evaluation))
        injectors.put(f"{name}_picture", picture, mark)
    evaluation.put("injectors", injectors, mark)
    values = evaluation.get("values")
    evaluation.put("values", [*(values if isinstance(values, list) else []), _FIGURE], mark)
    place.note(f"read as a data set to validate on, with '{_FIGURE}' as one of 'eval.values'", severity="notice")


def _evaluated(tree: MarkedDict, evaluation: MarkedDict, mark: Mark) -> tuple[MarkedDict, bool]:
    """The injectors that would run in evaluation, and whether they make its picture."""
    given = evaluation.get("injectors")
    if isinstance(given, MarkedDict) and given:
        return given, _writes(given, _output(evaluation))
    steps = tree.get("steps")
    for step in steps.values() if isinstance(steps, dict) else ():
        own = step.get("injectors") if isinstance(step, dict) else None
        if isinstance(own, MarkedDict) and _writes(own, _output(evaluation)):
            copy = MarkedDict(own.mark)
            for key, value in own.items():
                copy.put(key, value, own.key_marks[key], own.value_marks[key])
            return copy, True
    return MarkedDict(mark), False


def _writes(injectors: MarkedDict, key: str) -> bool:
    outs = [each.get("out") for each in injectors.values() if isinstance(each, dict) and not each.get("train")]
    return any(key == out or (isinstance(out, list) and key in out) for out in outs)


def _output(evaluation: MarkedDict) -> str:
    return str(evaluation.get("output_state", EvalConfig().output_state))


def _mapping(mark: Mark, **entries: Any) -> MarkedDict:
    made = MarkedDict(mark)
    for key, value in entries.items():
        made.put(key, value, mark)
    return made
