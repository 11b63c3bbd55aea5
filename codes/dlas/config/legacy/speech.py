"""What DL-Art-School's files say of speech and sound, and has another form here."""

from __future__ import annotations

from typing import Any

from dlas.config.source import MarkedDict, MarkedList
from dlas.config.typespec import Cursor

ERROR = "tacotron_error"
"""Figure that stands for the evaluator `mel`."""

_LOSS_KEYS = ("mel_target_key", "mel_output_key", "mel_output_postnet_key", "gate_target_key", "gate_output_key")


def validate_tacotron(name: str, entry: MarkedDict, tree: MarkedDict, place: Cursor) -> None:
    """The evaluator `mel`: its data set becomes one of `datasets`, Tacotron's loss a figure of each sample."""
    found = _step_with_loss(tree)
    dataset, sets = entry.get("dataset"), tree.get("datasets")
    if found is None or not isinstance(dataset, MarkedDict) or not isinstance(sets, MarkedDict):
        place.note("needs a data set, and a step with the loss 'nv_tacotron2_loss'", "name both, or remove the evaluator")
        return
    step, loss = found
    mark = place.mark
    if name not in sets:
        sets.put(name, dataset, mark)
    injector = MarkedDict(mark)
    for key, value in {"type": "nv_tacotron2_error", **{k: loss[k] for k in _LOSS_KEYS}, "out": ERROR, "eval": True}.items():
        injector.put(key, value, mark)
    step["injectors"].put(ERROR, injector, mark)
    if not isinstance(tree.get("eval"), MarkedDict):
        tree.put("eval", MarkedDict(mark), mark)
    shown = {"output_state": loss["mel_output_postnet_key"], "target_state": loss["mel_target_key"]}
    given = {**shown, "metrics": _listed(mark), "values": _listed(mark, ERROR), "batch_size": entry.get("batch_size", 1)}
    for key, value in given.items():
        if key not in tree["eval"]:
            tree["eval"].put(key, value, mark)
    place.note(
        f"read as 'datasets.{name}', 'eval.values: [{ERROR}]' and an injector 'nv_tacotron2_error': the loss on that set "
        "at each validation",
        severity="notice",
    )


def _step_with_loss(tree: MarkedDict) -> tuple[MarkedDict, MarkedDict] | None:
    steps = tree.get("steps")
    for step in steps.values() if isinstance(steps, dict) else ():
        losses, injectors = (step.get(key) if isinstance(step, dict) else None for key in ("losses", "injectors"))
        for loss in losses.values() if isinstance(losses, dict) and isinstance(injectors, MarkedDict) else ():
            if isinstance(loss, MarkedDict) and loss.get("type") == "nv_tacotron2_loss" and all(k in loss for k in _LOSS_KEYS):
                return step, loss
    return None


def _listed(mark: Any, *items: str) -> MarkedList:
    listed = MarkedList(mark)
    for item in items:
        listed.append(item)
        listed.marks.append(mark)
    return listed


def measure_no_sound(tree: MarkedDict, cursor: Cursor) -> None:
    """A file that says what speech to make, and nothing of measuring it."""
    sets, section = tree.get("datasets"), tree.get("eval")
    told = list(sets.values()) if isinstance(sets, MarkedDict) else []
    if not told or not all(isinstance(each, dict) and each.get("mode") == "nv_tacotron" for each in told):
        return
    if isinstance(section, MarkedDict) and "metrics" not in section and "sampling_rate" not in section:
        rate = told[0].get("sample_rate", 22050)
        section.put("metrics", _listed(section.mark), section.mark)
        section.put("sampling_rate", rate, section.mark)
        cursor.key(tree, "eval").note(
            f"read with 'metrics: []' and 'sampling_rate: {rate}': what is made is sound; DL-Art-School wrote it as a picture",
            severity="notice",
        )
