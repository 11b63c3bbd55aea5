"""Faults of DL-Art-School's files as a whole, mended with a notice that says what that program would have done."""

from __future__ import annotations

from dlas.config.legacy.speech import measure_no_sound
from dlas.config.source import MarkedDict, MarkedList
from dlas.config.typespec import Cursor

_MARKS = ("model", "gpu_ids", "use_tb_logger", "fp16")


def is_upstream(tree: MarkedDict) -> bool:
    """Whether a file was written for DL-Art-School: it has one of the keys that every such file has and ours do not."""
    return any(key in tree for key in _MARKS)


def repair(tree: MarkedDict, cursor: Cursor, mode: str) -> None:
    """Mends what no single key shows."""
    _agree_on_scale(tree, cursor)
    if mode == "test":
        _without_train_section(tree, cursor)
        _test_on_train(tree, cursor)
        _without_truth(tree, cursor)
        measure_no_sound(tree, cursor)


def _agree_on_scale(tree: MarkedDict, cursor: Cursor) -> None:
    """The scale at the top was read by one network only, so a file may say another one there than everywhere else."""
    parts = [tree[part] for part in ("datasets", "networks") if isinstance(tree.get(part), dict)]
    sections = [section for part in parts for section in part.values() if isinstance(section, dict)]
    told = [each["scale"] for each in sections if "scale" in each and each.get("type") != "discriminator"]
    if (
        "scale" in tree
        and told
        and all(each == told[0] and isinstance(each, int) for each in told)
        and told[0] != tree["scale"]
    ):
        before = tree["scale"]
        tree["scale"] = told[0]
        cursor.value(tree, "scale").note(
            f"{before} is read as {told[0]}, which is the scale of every data set and network; DL-Art-School did not read it "
            "here, and here the evaluation does",
            severity="notice",
        )


def _without_train_section(tree: MarkedDict, cursor: Cursor) -> None:
    if "train" not in tree:
        cursor.note(
            "the section 'train' is missing, and is not needed to test; DL-Art-School looked into it and stopped with an "
            "AttributeError",
            severity="notice",
        )


def _test_on_train(tree: MarkedDict, cursor: Cursor) -> None:
    """DL-Art-School's test.py ran every data set whatever its name."""
    datasets = tree.get("datasets")
    if not isinstance(datasets, MarkedDict) or list(datasets) != ["train"]:
        return
    place = cursor.value(tree, "datasets").key(datasets, "train")
    section, key_mark, value_mark = datasets.take("train")
    datasets.put("test", section, key_mark, value_mark)
    place.note(
        "read as 'datasets.test': DL-Art-School tested on every data set of a file; here 'train' is left out", "", "notice"
    )


def _without_truth(tree: MarkedDict, cursor: Cursor) -> None:
    """Pictures that are the input themselves (`skip_lq`) have no larger ones that the output could be compared with."""
    datasets, section = tree.get("datasets"), tree.get("eval")
    sets = list(datasets.values()) if isinstance(datasets, MarkedDict) else []
    if not sets or not all(isinstance(each, dict) and each.get("skip_lq") is True for each in sets):
        return
    if isinstance(section, MarkedDict) and "metrics" not in section:
        section.put("metrics", MarkedList(section.mark), section.mark)
        cursor.key(tree, "eval").note(
            "read with 'metrics: []': the pictures are the input (skip_lq), and there are no true ones; DL-Art-School "
            "measured nothing either",
            severity="notice",
        )
