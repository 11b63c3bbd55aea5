"""Spellings of DL-Art-School's files, translated to ours: one table, each line with the notice that the user is shown.

Keys that upstream accepts and that change nothing here are dropped, with the reason; none is ignored silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from dlas.config.source import Mark, MarkedDict
from dlas.config.typespec import Cursor

Action = Callable[[MarkedDict, str, Cursor, MarkedDict], None]
"""(mapping that holds the key, the key, its place, whole tree): changes the tree and notes what it did."""


def translate(tree: MarkedDict, cursor: Cursor) -> None:
    """Rewrites older spellings in place and notes each at the place where it was written."""
    for pattern, action in RULES:
        for holder, key, place in list(_matches(tree, pattern, cursor)):
            if key in holder:
                action(holder, key, place, tree)


def _matches(node: Any, pattern: str, cursor: Cursor) -> Iterator[tuple[MarkedDict, str, Cursor]]:
    head, _, rest = pattern.partition(".")
    if not isinstance(node, MarkedDict):
        return
    expression = re.compile(re.escape(head).replace(r"\*", ".*"))
    for key in [k for k in node if expression.fullmatch(k)]:
        if rest:
            yield from _matches(node[key], rest, cursor.value(node, key))
        else:
            yield node, key, cursor.key(node, key)


def _put(tree: MarkedDict, path: str, value: Any, key_mark: Mark, value_mark: Mark) -> bool:
    """Sets tree[path], making the mappings on the way; False if it is set already."""
    *parents, last = path.split(".")
    holder = tree
    for name in parents:
        if not isinstance(holder.get(name), MarkedDict):
            holder.put(name, MarkedDict(key_mark), key_mark)
        holder = holder[name]
    if last in holder:
        return False
    holder.put(last, value, key_mark, value_mark)
    return True


def move(target: str) -> Action:
    """The key is now called `target` (a path from the top)."""

    def action(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
        value, key_mark, value_mark = holder.take(key)
        if _put(tree, target, value, key_mark, value_mark):
            place.note(f"read as '{target}'", severity="notice")
        else:
            place.note(f"says the same as '{target}', which is given too", "keep one of them")

    return action


def drop(reason: str) -> Action:
    """The key changes nothing here."""

    def action(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
        holder.take(key)
        place.note(f"has no effect: {reason}", severity="notice")

    return action


def drop_if(values: tuple[Any, ...], reason: str) -> Action:
    """The key changes nothing here while it has one of these values; others are left for the schema to refuse."""

    def action(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
        if holder[key] in values:
            drop(reason)(holder, key, place, tree)

    return action


def _fp16(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
    if not isinstance(holder[key], bool):
        place.note("expected true or false", "or write 'precision: fp16'")
        return
    value, key_mark, value_mark = holder.take(key)
    precision = "fp16" if value else "fp32"
    if not _put(tree, "precision", precision, key_mark, value_mark):
        place.note("says the same as 'precision', which is given too", "keep 'precision'")
    else:
        place.note(f"read as 'precision: {precision}'", severity="notice")


def _gpu_ids(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
    ids = holder[key]
    if not isinstance(ids, list) or len(ids) > 1 or not all(isinstance(i, int) for i in ids):
        place.note("expected a list with one GPU number", "to train on several GPUs start one process for each")
        return
    _, key_mark, value_mark = holder.take(key)
    # A file that says `gpu_ids: [0]` must also run where there is no GPU, so number 0 means "the device there is".
    device = f"cuda:{ids[0]}" if ids and ids[0] > 0 else "auto"
    _put(tree, "device", device, key_mark, value_mark)
    place.note(f"read as 'device: {device}'", severity="notice")


_SCHEME_KEYS = {
    "MultiStepLR": ("gen_lr_steps", "lr_gamma", "restarts", "restart_weights", "warmup_steps", "force_lr"),
    "CosineAnnealingLR_Restart": ("T_period", "warmup", "eta_min", "restarts", "restart_weights"),
}


def _lr_scheme(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
    name, key_mark, value_mark = holder.take(key)
    scheme = MarkedDict(value_mark)
    scheme.put("type", name, key_mark, value_mark)
    keys = _SCHEME_KEYS.get(name, ()) if isinstance(name, str) else ()
    for option in keys:
        if option in holder:
            scheme.put(option, *holder.take(option))
    if _put(tree, "train.lr_scheme", scheme, key_mark, value_mark):
        place.note(
            f"with {', '.join(k for k in keys if k in scheme) or 'no options'} read as 'train.lr_scheme'", severity="notice"
        )
    else:
        place.note("says the same as 'train.lr_scheme', which is given too", "keep 'lr_scheme'")


def _inline_optimizer_key(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
    value, key_mark, value_mark = holder.take(key)
    if not isinstance(holder.get("optimizer_params"), MarkedDict):
        holder.put("optimizer_params", MarkedDict(key_mark), key_mark)
    if key in holder["optimizer_params"]:
        place.note("given in 'optimizer_params' too", "keep that one")
        return
    holder["optimizer_params"].put(key, value, key_mark, value_mark)
    place.note(
        "read as part of 'optimizer_params' (DL-Art-School ignored it here, and the network never trained)", severity="notice"
    )


def _pretrain(holder: MarkedDict, key: str, place: Cursor, tree: MarkedDict) -> None:
    network = key.removeprefix("pretrain_model_")
    if holder[key] is None:
        drop("no file is given")(holder, key, place, tree)
    else:
        move(f"path.pretrain.{network}")(holder, key, place, tree)


RULES: list[tuple[str, Action]] = [
    ("model", drop("there is one trainer")),
    ("distortion", drop("nothing depends on it")),
    ("suffix", drop_if((None,), "nothing is appended to file names")),
    ("gpu_ids", _gpu_ids),
    ("fp16", _fp16),
    ("use_tb_logger", move("logger.tensorboard")),
    ("wandb", drop_if((False,), "Weights & Biases is not used")),
    ("start_step", drop_if((-1, 0), "a run starts at step 0 and goes on from its newest checkpoint")),
    ("force_start_step", drop_if((-1, 0), "a run starts at step 0 and goes on from its newest checkpoint")),
    ("cuda_benchmarking_enabled", move("cudnn_benchmark")),
    ("train.manual_seed", move("seed")),
    ("train.ema_rate", move("train.ema.rate")),
    ("train.ema_enabled", move("train.ema.enabled")),
    ("train.default_lr_scheme", _lr_scheme),
    ("path.pretrain_model_*", _pretrain),
    ("steps.*.lr", _inline_optimizer_key),
    ("steps.*.weight_decay", _inline_optimizer_key),
    ("steps.*.beta1", _inline_optimizer_key),
    ("steps.*.beta2", _inline_optimizer_key),
    ("steps.*.loss_log_buffer", drop("each log line averages over the steps since the last one")),
]
