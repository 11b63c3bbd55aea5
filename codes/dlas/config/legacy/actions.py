"""What is done with a key of an older file: moved, dropped, refused, or rewritten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlas.config.announced import note_not_built
from dlas.config.source import Mark, MarkedDict
from dlas.config.typespec import Cursor, shown
from dlas.registry import ARCHS, nearest


@dataclass(frozen=True)
class Found:
    """A key that was found in a file.

    Args:
        holder: the mapping that holds it.
        key: the key.
        place: its place; what is noted there is shown to the user.
        tree: the whole file.
        upstream: whether the file was written for DL-Art-School.
    """

    holder: MarkedDict
    key: str
    place: Cursor
    tree: MarkedDict
    upstream: bool

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    def notice(self, words: str) -> None:
        """Tells of a translation."""
        self.place.note(words, severity="notice")

    def become(self, target: str, value: Any, key_mark: Mark, value_mark: Mark, words: str) -> None:
        """Sets `target` (a path from the top) in place of this key. Of two that are given an override wins."""
        if put(self.tree, target, value, key_mark, value_mark):
            self.notice(words)
            return
        holder = self.tree
        *parents, last = target.split(".")
        for name in parents:
            holder = holder[name]
        overridden, overriding = _is_override(holder.value_marks.get(last)), _is_override(value_mark)
        if overridden == overriding:
            self.place.note(f"says the same as '{target}', which is given too", f"keep '{last}'")
        elif overriding:
            holder.put(last, value, key_mark, value_mark)
            self.notice(words)
        else:
            self.notice(f"'{target}' is given on the command line in its place")


Action = Callable[[Found], None]


def _is_override(mark: Mark | None) -> bool:
    return mark is not None and mark.line == 0


def put(tree: MarkedDict, path: str, value: Any, key_mark: Mark, value_mark: Mark | None = None) -> bool:
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

    def action(found: Found) -> None:
        value, key_mark, value_mark = found.holder.take(found.key)
        found.become(target, value, key_mark, value_mark, f"read as '{target}'")

    return action


def rename(name: str, why: str) -> Action:
    """The key is now called `name`, in the same mapping."""

    def action(found: Found) -> None:
        value, key_mark, value_mark = found.holder.take(found.key)
        if name in found.holder:
            found.place.note(f"says the same as '{name}', which is given too", f"keep '{name}'")
            return
        found.holder.put(name, value, key_mark, value_mark)
        found.notice(f"read as '{name}': {why}")

    return action


def drop(reason: str) -> Action:
    """The key changes nothing here."""

    def action(found: Found) -> None:
        found.holder.take(found.key)
        found.notice(f"has no effect: {reason}")

    return action


def drop_word(reason: str) -> Action:
    """The key changes nothing here while it holds a word; a mapping is left for the schema, which knows where it belongs."""
    dropping = drop(reason)

    def action(found: Found) -> None:
        if not isinstance(found.holder[found.key], dict):
            dropping(found)

    return action


def refuse(reason: str, fix: str, neutral: tuple[Any, ...], why_neutral: str) -> Action:
    """The key asks for something that is not done here; the values in `neutral` ask for nothing and are dropped."""

    def action(found: Found) -> None:
        value, *_ = found.holder.take(found.key)
        if any(value is each or (value == each and isinstance(value, bool) == isinstance(each, bool)) for each in neutral):
            found.notice(f"has no effect: {why_neutral}")
        else:
            said = "this" if "password" in found.key else shown(value)
            found.place.note(f"{said} is not supported: {reason}", fix)

    return action


def fp16(found: Found) -> None:
    """`fp16: true` -> `precision: fp16`."""
    if not isinstance(found.value, bool):
        found.place.note("expected true or false", "or write 'precision: fp16'")
        found.holder.take(found.key)
        return
    value, key_mark, value_mark = found.holder.take(found.key)
    precision = "fp16" if value else "fp32"
    found.become("precision", precision, key_mark, value_mark, f"read as 'precision: {precision}'")


def gpu_ids(found: Found) -> None:
    """`gpu_ids: [1]` -> `device: cuda:1`; several -> `distributed.gpu_ids`."""
    ids, key_mark, value_mark = found.holder.take(found.key)
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        found.place.note("expected a list of GPU numbers", "for instance [0]")
        return
    if len(ids) > 1:
        words = f"read as 'distributed.gpu_ids'; start one process for each: torchrun --nproc_per_node={len(ids)} train.py ..."
        found.become("distributed.gpu_ids", ids, key_mark, value_mark, words)
        return
    # A file that says `gpu_ids: [0]` must also run where there is no GPU, so number 0 means "the device there is".
    device = f"cuda:{ids[0]}" if ids and ids[0] > 0 else "auto"
    found.become("device", device, key_mark, value_mark, f"read as 'device: {device}'")


SCHEME_KEYS = {
    "MultiStepLR": ("gen_lr_steps", "lr_gamma", "restarts", "restart_weights", "warmup_steps", "force_lr"),
    "CosineAnnealingLR_Restart": ("T_period", "warmup", "eta_min", "restarts", "restart_weights"),
}
"""Options that stood beside `train.default_lr_scheme`, by scheme."""


def lr_scheme(found: Found) -> None:
    """`default_lr_scheme` and the options beside it -> `lr_scheme: {type: ...}`."""
    name, key_mark, value_mark = found.holder.take(found.key)
    scheme = MarkedDict(value_mark)
    scheme.put("type", name, key_mark, value_mark)
    keys = SCHEME_KEYS.get(name, ()) if isinstance(name, str) else ()
    if not keys:
        known = " and ".join(SCHEME_KEYS)
        found.place.note(f"{shown(name)} is not supported: {known} are read", "or write 'lr_scheme: {type: ...}'")
    for option in keys:
        if option in found.holder:
            scheme.put(option, *found.holder.take(option))
    words = f"with {', '.join(k for k in keys if k in scheme) or 'no options'} read as 'train.lr_scheme'"
    found.become("train.lr_scheme", scheme, key_mark, value_mark, words)


def scheme_option(found: Found) -> None:
    """What is left after `lr_scheme`: an option of a scheme that does not read it, or without a scheme."""
    _, *_ = found.holder.take(found.key)
    scheme = found.holder.get("lr_scheme")
    if isinstance(scheme, dict) and "type" in scheme:
        found.notice(f"has no effect: the schedule {scheme['type']} does not read it")
    else:
        found.place.note("belongs to a schedule, and none is named", "write 'lr_scheme: {type: ..., " + found.key + ": ...}'")


def inline_optimizer_key(found: Found) -> None:
    """`lr` beside `optimizer_params` -> within it."""
    value, key_mark, value_mark = found.holder.take(found.key)
    if not isinstance(found.holder.get("optimizer_params"), MarkedDict):
        found.holder.put("optimizer_params", MarkedDict(key_mark), key_mark)
    if found.key in found.holder["optimizer_params"]:
        found.place.note("given in 'optimizer_params' too", "keep that one")
        return
    found.holder["optimizer_params"].put(found.key, value, key_mark, value_mark)
    found.notice("read as part of 'optimizer_params' (DL-Art-School ignored it here, and the network never trained)")


def optimizer_gate(found: Found) -> None:
    """`optimizer_params.after`, `before`: the step's injectors ran, its update did not: gates on all its losses do that."""
    step_path = found.place.path.rpartition(".optimizer_params.")[0]
    step = found.tree.get("steps", {}).get(step_path.removeprefix("steps."))
    value, key_mark, value_mark = found.holder.take(found.key)
    if _gate_losses(step, found, value, key_mark, value_mark):
        found.notice(f"read as '{found.key}' of the losses of this step: its injectors run, its networks are not updated")


def network_after(found: Found) -> None:
    """`networks.<n>.after`: as `optimizer_params.after` of the steps that train the network."""
    name = found.place.path.removeprefix("networks.").removesuffix(".after")
    value, key_mark, value_mark = found.holder.take(found.key)
    steps = found.tree.get("steps")
    for step in steps.values() if isinstance(steps, dict) else ():
        trained = step.get("training") if isinstance(step, dict) else None
        if trained == name and not _gate_losses(step, found, value, key_mark, value_mark):
            return
        if isinstance(trained, list) and name in trained:
            found.place.note(
                "is not supported for a network that is trained together with others", "write 'after' at the losses"
            )
            return
    found.notice("read as 'after' of the losses of the steps that train this network")


def _gate_losses(step: Any, found: Found, value: Any, key_mark: Mark, value_mark: Mark) -> bool:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        found.place.note(f"expected a whole number of at least 0, found {shown(value)}")
        return False
    losses = step.get("losses") if isinstance(step, dict) else None
    later = max if found.key == "after" else min
    # The older span includes its limit, ours does not. In older files `before` of the losses is put right after this.
    limit = value + (found.key == "before" and not found.upstream)
    for loss in losses.values() if isinstance(losses, dict) else ():
        if isinstance(loss, MarkedDict):
            own = loss.get(found.key)
            loss.put(found.key, later(limit, own) if isinstance(own, int) else limit, key_mark, value_mark)
    return True


def before(found: Found) -> None:
    """DL-Art-School's `before: N` was open in step N itself."""
    value = found.value
    if found.upstream and isinstance(value, int) and not isinstance(value, bool):
        found.holder[found.key] = value + 1
        found.notice(f"read as {value + 1}: DL-Art-School's span ended with step {value}, here it ends before the number given")


def pretrain(found: Found) -> None:
    """`path.pretrain_model_<n>` -> `path.pretrain.<n>`."""
    network = found.key.removeprefix("pretrain_model_")
    (drop("no file is given") if found.value is None else move(f"path.pretrain.{network}"))(found)


def resume_state(found: Found) -> None:
    """A `.state` file cannot be gone on from."""
    if isinstance(found.value, str) and found.value.endswith(".state"):
        found.holder.take(found.key)
        found.place.note(
            "a training state of DL-Art-School cannot be gone on from",
            "start from its weights with 'path.pretrain.<network>'; runs of this program go on by themselves",
        )


def val_freq_megasamples(found: Found) -> None:
    """Millions of samples -> iterations."""
    value, key_mark, value_mark = found.holder.take(found.key)
    train = (found.tree.get("datasets") or {}).get("train") if isinstance(found.tree.get("datasets"), dict) else None
    batch = train.get("batch_size", 1) if isinstance(train, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or not isinstance(batch, int) or batch < 1:
        found.place.note(f"expected a number greater than 0, found {shown(value)}", "or write 'val_freq', in iterations")
        return
    frequency = max(1, round(value * 1e6 / batch))
    words = f"read as 'train.val_freq: {frequency}' ({value} million samples in batches of {batch})"
    found.become("train.val_freq", frequency, key_mark, value_mark, words)


def network_scale(found: Found) -> None:
    """Discriminators of older files say a `scale` that they have no use for."""
    name = next((found.holder[k] for k in ("which_model", "which_model_G", "which_model_D") if k in found.holder), None)
    entry = ARCHS.find(name) if isinstance(name, str) and name in ARCHS else None
    if entry is not None and entry.parameter("scale") is None and not entry.accepts_any and _is_discriminator(found):
        drop(f"the architecture '{name}' has no such option; DL-Art-School did not read it either")(found)


def _is_discriminator(found: Found) -> bool:
    return found.holder.get("type") == "discriminator" or "which_model_D" in found.holder


def memcached(found: Found) -> None:
    """`mode: <name>_mc`."""
    value = found.value
    if isinstance(value, str) and value.endswith("_mc"):
        found.holder[found.key] = value.removesuffix("_mc")
        found.notice(f"read as '{found.value}': files are not read through memcached")


def fullimage_training(found: Found) -> None:
    """Options that `mode: fullimage` had for training."""
    if found.holder.get("mode") == "fullimage":
        drop("tiles are cut and turned to train on, and 'fullimage' is for validation")(found)


def announced_option(found: Found) -> None:
    """An option that will come."""
    if found.value is True:
        note_not_built("option", found.place.path, found.place)
        found.holder.take(found.key)
    else:
        refuse("", "", (False, None), "that is how it is done")(found)


def dataset_of_video(found: Found) -> None:
    """`dataset:` of a file for process_video.py -> an entry of `datasets`."""
    section, key_mark, value_mark = found.holder.take(found.key)
    if not isinstance(section, MarkedDict):
        close = nearest(found.key, ["datasets"])
        found.place.note("unknown key", f"did you mean '{close}'?")
        return
    for key in [k for k in section if k in ("n_workers", "batch_size")]:
        Found(section, key, found.place.key(section, key), found.tree, found.upstream).notice(
            "has no effect: frames go through the network one by one"
        )
        section.take(key)
    if "vertical_splits" in section:
        place = found.place.key(section, "vertical_splits")
        refuse("frames are not cut into halves", "cut the video beforehand", (0, 1, None), "frames are not cut")(
            Found(section, "vertical_splits", place, found.tree, found.upstream)
        )
    section.put("mode", "video_frames", key_mark)
    words = "read as 'datasets.video' of mode 'video_frames'; `dlas test` writes a picture for each frame"
    found.become("datasets.video", section, key_mark, value_mark, words)
