"""The option files of BasicSR, and of traiNNer-redux, which grew out of it: what each key is called here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from dlas.config.source import MarkedDict, MarkedList
from dlas.errors import ConfigurationError
from dlas.interop.option_files.carry import Source, Taken, Target, Uncarried
from dlas.registry import ARCHS, OPTIMIZERS, yaml_name

_RRDB = {
    "num_in_ch": "in_nc",
    "num_out_ch": "out_nc",
    "num_feat": "nf",
    "num_block": "nb",
    "num_grow_ch": "gc",
    "in_nc": "in_nc",
    "out_nc": "out_nc",
    "num_filters": "nf",
    "num_blocks": "nb",
    "use_pixel_unshuffle": "pixel_unshuffle",
    "scale": "scale",
}
_UP = {"upscale": "scale"}
_RCAN = {
    **_UP,
    "n_resgroups": "num_group",
    "n_resblocks": "num_block",
    "n_feats": "num_feat",
    "n_colors": "num_in_ch",
    "reduction": "squeeze_factor",
    "rgb_range": "img_range",
    "unshuffle_mod": "unshuffle",
}
_PLKSR = {"upscaling_factor": "scale"}
NETWORKS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "rrdbnet": ("RRDBNet", _RRDB, {}),
    "esrgan": ("RRDBNet", _RRDB, {}),
    "esrgan_lite": ("RRDBNet", _RRDB, {"nf": 32, "nb": 12}),
    "srvggnetcompact": ("SRVGGNetCompact", _UP, {}),
    "compact": ("SRVGGNetCompact", _UP, {}),
    "ultracompact": ("SRVGGNetCompact", _UP, {"num_conv": 8}),
    "superultracompact": ("SRVGGNetCompact", _UP, {"num_feat": 24, "num_conv": 8}),
    "msrresnet": ("MSRResNet", _UP, {}),
    "edsr": ("EDSR", _UP, {}),
    "rcan": ("RCAN", _RCAN, {}),
    "rcan_l": ("RCAN", _RCAN, {"num_feat": 96, "norm": False}),
    "rcan_unshuffle": ("RCAN", _RCAN, {"norm": False, "unshuffle": True}),
    "swinir": (
        "SwinIR",
        _UP,
        {
            "embed_dim": 96,
            "depths": [6] * 4,
            "num_heads": [6] * 4,
            "mlp_ratio": 4.0,
            "upsampler": "",
        },
    ),
    "swinir_s": (
        "SwinIR",
        _UP,
        {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "upsampler": "pixelshuffledirect"},
    ),
    "swinir_m": ("SwinIR", _UP, {"img_size": 48}),
    "swinir_l": (
        "SwinIR",
        _UP,
        {
            "embed_dim": 240,
            "depths": [6] * 9,
            "num_heads": [8] * 9,
            "upsampler": "nearest+conv",
            "resi_connection": "3conv",
        },
    ),
    "SPAN": ("SPAN", _UP, {"feature_channels": 48}),
    "span": ("SPAN", _UP, {"norm": False}),
    "span_s": ("SPAN", _UP, {"feature_channels": 48, "norm": False}),
    "plksr": ("PLKSR", _PLKSR, {}),
    "plksr_tiny": ("PLKSR", _PLKSR, {"n_blocks": 12, "kernel_size": 13, "use_ea": False}),
    "realplksr": ("RealPLKSR", _PLKSR, {"layer_norm": True}),
    "realplksr_tiny": ("RealPLKSR", _PLKSR, {"n_blocks": 12, "kernel_size": 13, "use_ea": False, "layer_norm": True}),
    "realplksr_large": ("RealPLKSR", _PLKSR, {"dim": 96, "layer_norm": True}),
    "hat": ("HAT", _UP, {}),
    "hat_s": ("HAT", _UP, {"embed_dim": 144, "compress_ratio": 24, "squeeze_factor": 24}),
    "hat_m": ("HAT", _UP, {}),
    "hat_l": ("HAT", _UP, {"depths": [6] * 12, "num_heads": [6] * 12}),
    "dat": ("DAT", _UP, {}),
    "dat_s": ("DAT", _UP, {"split_size": [8, 16], "expansion_factor": 2.0}),
    "dat_2": ("DAT", _UP, {"expansion_factor": 2.0}),
    "dat_light": (
        "DAT",
        _UP,
        {
            "embed_dim": 60,
            "depth": [18],
            "num_heads": [6],
            "expansion_factor": 2.0,
            "resi_connection": "3conv",
            "upsampler": "pixelshuffledirect",
        },
    ),
    "omnisr": ("OmniSR", {"up_scale": "scale"}, {}),
    "vggstylediscriminator128": ("VGGStyleDiscriminator", {}, {"input_size": 128}),
    "vggstylediscriminator256": ("VGGStyleDiscriminator", {}, {"input_size": 256}),
}
"""Their name -> ours, the names of options, options for what is not given. Names are found in small letters where they are not
found as they are. Other networks go by their own name."""

_DATASETS = ("pairedimagedataset", "singleimagedataset", "realesrgandataset", "realesrganpaireddataset")
_CRITERIA = {"l1loss": "l1", "mseloss": "l2", "charbonnierloss": "charbonnier", "huberloss": "huber"}
_GAN_TYPES = {"vanilla": "gan", "lsgan": "lsgan", "wgan": "wgan", "wgan_softplus": "wgan_softplus", "hinge": "hinge"}
_METRICS = {
    "calculate_psnr": "psnr",
    "calculate_ssim": "ssim",
    "calculate_lpips": "lpips",
    "calculate_dists": "dists",
    "calculate_niqe": "niqe",
}
_PICTURE_LOSSES = {
    "weightedtvloss": ("tv", ()),
    "colorloss": ("color", ("criterion", "scale")),
    "averageloss": ("average", ("criterion", "scale")),
    "focalfrequencyloss": (
        "focal_frequency", ("alpha", "patch_factor", "ave_spectrum", "log_matrix", "batch_matrix")
    ),
    "distsloss": ("dists", ()),
    "ldlloss": ("ldl", ()),
}  # fmt: skip
"""Their name in small letters -> ours, and the options that are called the same."""

_LAYER = re.compile(r"(conv|relu)[1-5]_[1-4]|pool[1-5]")

_NEAREST = {
    "mssimloss": "ms_ssim (there it is mixed with other losses)",
    "msssiml1loss": "ms_ssim beside pix",
    "lumaloss": "luma (there of another colour space)",
    "hsluvloss": "color",
    "bicubicloss": "downscaled",
    "contextualloss": "contextual",
    "cosimloss": "style",
    "gradientvarianceloss": "gradient",
    "adistsloss": "dists",
}
"""Losses that are something else there, and what comes nearest here."""
_DEGRADATIONS = (
    "high_order_degradations_debug", "lq_usm", "blur_prob", "resize_", "gaussian_noise_prob", "noise_range",
    "poisson_scale_range", "gray_noise_prob", "jpeg_", "queue_size",
)  # fmt: skip
_SPARED = {
    "model_type": "steps and losses say what is trained",
    "is_train": "the command says it",
    "dist": "the way in which it is started decides: torchrun or srun",
    "launcher": "the command says it: train.py --launcher",
    "dist_params": "nccl on GPUs, gloo on CPUs",
    "find_unused_parameters": "parameters without a gradient need no option",
    "auto_resume": "runs go on by themselves",
    "path.experiments_root": "'path.experiments' names the folder of all runs",
    "path.param_key_g": "the entry with averaged weights is taken by itself, else that with weights",
    "path.param_key_d": "the entry with averaged weights is taken by itself, else that with weights",
    "val.pbar": "there is none",
    "val.val_enabled": "validation is on where there is a data set for it",
    "val.metrics_enabled": "'eval.metrics' says it",
    "logger.save_checkpoint_format": "checkpoints are safetensors",
}
_SPARED_IN_DATASETS = {
    "phase": "the name of the section says it",
    "dataset_enlarge_ratio": "the order of samples has no end",
    "prefetch_mode": "batches are prepared ahead by the workers",
    "num_prefetch_queue": "batches are prepared ahead by the workers",
    "persistent_workers": "workers live as long as the run",
    "use_shuffle": "samples are shuffled",
    "scale": "the file's scale is taken",
}


def convert_tree(source: Source) -> Target:
    """Takes from `source` all that has a counterpart here.

    Raises:
        ConfigurationError: a network or data set has none, or what every file needs is missing.
    """
    target = Target()
    model = str(source.value("model_type", "")).lower() if "model_type" in source.tree else ""
    _top(source, target)
    processes = _devices(source, target)
    accumulation = _datasets(source, target, processes)
    _network(source, target, "network_g", "generator")
    has_judge = source.section("network_d") is not None
    if has_judge:
        _network(source, target, "network_d", "discriminator")
    _paths(source, target, has_judge)
    _steps(source, target, relativistic=model == "esrganmodel", has_judge=has_judge)
    _train(source, target, accumulation)
    _validation(source, target)
    _logs(source, target)
    for path, reason in _SPARED.items():
        source.spare(path, reason)
    _drop_empty(source.tree)
    return target


def _top(source: Source, target: Target) -> None:
    for theirs, ours in (("name", "name"), ("scale", "scale"), ("manual_seed", "seed"), ("deterministic", "deterministic")):
        target.carry(source.take(theirs), ours)
    if "name" not in target.tree:
        raise ConfigurationError("the file has no 'name', which every run needs")
    target.carry(source.take("detect_anomaly"), "anomaly_detection")
    target.carry(source.take("fast_matmul"), "tf32")
    amp, half = source.take("use_amp"), source.value("amp_bf16", False)
    if amp is not None and amp.value:
        target.put("precision", "bf16" if half else "fp16", amp.mark)
    layout = source.take("use_channels_last")
    if layout is not None and layout.value:
        target.put("memory_format", "channels_last", layout.mark)
    source.lose("use_compile", "networks are not compiled", (None, False))
    _switch(source, "", "high_order_degradation", _DEGRADATIONS, "low-quality images are made by bicubic interpolation")


def _switch(source: Source, parent: str, key: str, prefixes: tuple[str, ...], reason: str) -> None:
    """A key that turns something on that is not there here, and the keys that tell how: not needed where it is off."""
    section = source.section(parent)
    if section is None or key not in section or section[key]:
        return
    path = f"{parent}.{key}".lstrip(".")
    source.spare(path, reason)
    for name in [name for name in section if name.startswith(prefixes)]:
        source.spare(f"{parent}.{name}".lstrip("."), f"'{path}' is off")


def _devices(source: Source, target: Target) -> int:
    """The number of processes that the original was for."""
    taken = source.take("num_gpu")
    if taken is None or taken.value is None:
        return 1
    target.put("device", "cpu" if taken.value == 0 else "auto", taken.mark)
    count = taken.value if isinstance(taken.value, int) else 1
    if count > 1:
        source.put_back(taken, "the run is one process; the batch is as large as that of all GPUs together")
    return max(count, 1)


def _datasets(source: Source, target: Target, processes: int) -> int:
    sections = source.section("datasets")
    if sections is None or not isinstance(sections.get("train"), MarkedDict):
        raise ConfigurationError("the file has no 'datasets.train'; files to test with are short enough to write anew")
    accumulation = 1
    for name in list(sections):
        if isinstance(sections[name], MarkedDict):
            accumulation = max(accumulation, _dataset(source, target, name, processes))
            target.mark(f"datasets.{name}", sections.key_marks[name])
    target.mark("datasets", source.tree.key_marks["datasets"])
    return accumulation


def _dataset(source: Source, target: Target, name: str, processes: int) -> int:
    theirs, ours = f"datasets.{name}", f"datasets.{name}"
    kind = source.take(f"{theirs}.type")
    if kind is None or str(kind.value).lower() not in _DATASETS:
        found = "nothing" if kind is None else f"'{kind.value}'"
        raise ConfigurationError(f"datasets.{name}.type: no counterpart to {found}; known: {', '.join(_DATASETS)} (any case)")
    target.put(f"{ours}.mode", "paired_images", kind.mark)
    if str(kind.value).lower() == "realesrgandataset":
        source.put_back(kind, "low-quality images are made by bicubic interpolation, not by the chain of degradations")
    label = source.take(f"{theirs}.name")
    target.carry(label, f"{ours}.name")
    for key in ("dataroot_gt", "dataroot_lq"):
        taken = source.take(f"{theirs}.{key}")
        if taken is not None and isinstance(taken.value, list) and len(taken.value) == 1:
            taken = Taken(taken.value[0], taken.mark, taken.path)
        target.carry(taken, f"{ours}.{key}")
    if "dataroot_gt" not in target.tree["datasets"][name]:
        raise ConfigurationError(f"datasets.{name} has no 'dataroot_gt': pictures without a true one cannot be measured here")
    template = source.take(f"{theirs}.filename_tmpl")
    if template is not None and template.value != "{}":
        target.put(f"{ours}.filename_template", template.value, template.mark)
    size, scale = source.take(f"{theirs}.gt_size"), target.tree.get("scale", 1)
    place = source.mark(f"{theirs}.lq_size")
    small = source.number(f"{theirs}.lq_size")
    target.carry(size, f"{ours}.target_size")
    if small is not None and size is None and isinstance(scale, int):
        target.put(f"{ours}.target_size", small * scale, place)
    target.carry(source.take(f"{theirs}.use_flip"), f"{ours}.use_flip")
    target.carry(source.take(f"{theirs}.use_hflip"), f"{ours}.use_flip")
    target.carry(source.take(f"{theirs}.use_rot"), f"{ours}.use_rot")
    accumulation = int(source.number(f"{theirs}.accum_iter", 1))
    if name == "train":
        place = source.mark(f"{theirs}.batch_size_per_gpu")
        target.put(
            f"{ours}.batch_size", int(source.number(f"{theirs}.batch_size_per_gpu", 1)) * processes * accumulation, place
        )
        target.carry(source.take(f"{theirs}.num_worker_per_gpu"), f"{ours}.n_workers")
    else:
        source.spare(f"{theirs}.batch_size_per_gpu", "pictures are validated one by one")
        source.spare(f"{theirs}.num_worker_per_gpu", "pictures are validated one by one")
    target.carry(source.take(f"{theirs}.pin_memory"), f"{ours}.pin_memory")
    backend = source.take(f"{theirs}.io_backend.type")
    if backend is not None and backend.value not in ("disk", "lmdb"):  # a database is known by the name of its folder
        source.put_back(backend, "images are read from folders or LMDB; unpack them")
    elif backend is not None and backend.value == "lmdb" and not _in_databases(target.tree["datasets"][name]):
        source.put_back(backend, "the folder of a database ends in .lmdb; correct the paths, or unpack it")
    for key in ("meta_info_file", "meta_info"):
        listing = source.take(f"{theirs}.{key}")
        if listing is not None and listing.value:
            target.carry(listing, f"{ours}.meta_info")
    source.lose(f"{theirs}.color", "networks are given RGB")
    for key, reason in _SPARED_IN_DATASETS.items():
        source.spare(f"{theirs}.{key}", reason)
    return accumulation


def _in_databases(section: Mapping[str, Any]) -> bool:
    roots = [section.get("dataroot_gt"), section.get("dataroot_lq")]
    flat = [path for root in roots if root is not None for path in (root if isinstance(root, list) else [root])]
    return all(str(path).rstrip("/").endswith(".lmdb") for path in flat)


def _network(source: Source, target: Target, key: str, name: str) -> None:
    section = source.section(key)
    kind = source.take(f"{key}.type")
    if section is None or kind is None:
        raise ConfigurationError(f"the file has no '{key}.type'")
    lowered = {entry.lower(): entry for entry in ARCHS.entries()}
    theirs = str(kind.value).lower()
    ours, renamed, added = NETWORKS.get(str(kind.value), NETWORKS.get(theirs, (lowered.get(theirs), {}, {})))
    if ours is None:
        known = ", ".join(sorted({*NETWORKS, *lowered}))
        raise ConfigurationError(f"{key}.type: there is no network '{kind.value}' here; those that can be converted: {known}")
    place = f"networks.{name}"
    target.put(f"{place}.type", name, None)
    target.put(f"{place}.which_model", ours, kind.mark)
    options = {yaml_name(parameter.name) for parameter in ARCHS.find(ours).parameters}
    given = {renamed.get(option, option) for option in section}
    for option in list(section):
        taken = source.take(f"{key}.{option}")
        if renamed.get(option, option) in options:
            target.carry(taken, f"{place}.{renamed.get(option, option)}")
        else:
            source.put_back(taken, f"the network {ours} has no such option")
    for option, value in added.items():
        if option not in given:
            target.put(f"{place}.{option}", value)
    target.mark(place, source.tree.key_marks.get(key))


def _paths(source: Source, target: Target, has_judge: bool) -> None:
    target.carry(source.take("path.pretrain_network_g"), "path.pretrain.generator")
    judge = source.take("path.pretrain_network_d")
    if has_judge:
        target.carry(judge, "path.pretrain.discriminator")
    elif judge is not None and judge.value is not None:
        source.put_back(judge, "there is no discriminator")
    strict, other = source.take("path.strict_load_g"), source.take("path.strict_load_d")
    target.carry(strict or other, "path.strict_load")
    if strict is not None and other is not None and other.value != strict.value:
        source.put_back(other, "one setting holds for all networks")
    source.lose("path.resume_state", "a training state of another program cannot be gone on from")
    target.mark("path", source.tree.key_marks.get("path"))


def _steps(source: Source, target: Target, relativistic: bool, has_judge: bool) -> None:
    _optimizer(source, target, "train.optim_g", "generator")
    target.put("steps.generator.injectors.gen", {"type": "generator", "generator": "generator", "in": "lq", "out": "gen"})
    judged = _losses(source, target, relativistic, has_judge)
    if "losses" not in target.tree["steps"]["generator"]:
        raise ConfigurationError("none of the losses of the file has a counterpart here, so nothing would be trained")
    if judged is not None:
        _optimizer(source, target, "train.optim_d", "discriminator")
        loss = {"type": "discriminator_gan", "gan_type": judged, "weight": 1.0, "real": "hq", "fake": "gen"}
        given = target.tree["steps"]["generator"]["losses"]["gan"]
        loss |= {label: given[label] for label in ("real_label", "fake_label") if label in given}
        target.put("steps.discriminator.losses.gan", loss)
    elif has_judge:
        raise ConfigurationError("the file has a discriminator and no adversarial loss that can be carried")
    start = source.take("train.net_d_init_iters")
    if start is not None and start.value:
        for each in target.tree["steps"]["generator"]["losses"].values():
            each.put("after", start.value, start.mark)
    every = source.take("train.net_d_iters")
    if every is not None and every.value not in (None, 1):
        target.put("steps.generator.every", every.value, every.mark)
    clip = source.take("train.grad_clip")
    if clip is not None and clip.value:
        for step in target.tree["steps"]:
            target.put(f"steps.{step}.clip_grad_eps", 1.0, clip.mark)


def _optimizer(source: Source, target: Target, theirs: str, network: str) -> None:
    section = source.section(theirs)
    if section is None:
        raise ConfigurationError(f"the file has no '{theirs}', the optimiser of the network '{network}'")
    step = f"steps.{network}"
    target.put(f"{step}.training", network)
    kind = source.take(f"{theirs}.type")
    name = str(kind.value) if kind is not None else "Adam"
    target.put(f"{step}.optimizer", {"adam": "adam", "adamw": "adamw"}.get(name.lower(), name), kind.mark if kind else None)
    ours = target.tree["steps"][network]["optimizer"]
    known = [yaml_name(each.name) for each in OPTIMIZERS.find(ours).parameters] if ours in OPTIMIZERS else None
    for option in list(section):
        taken = source.take(f"{theirs}.{option}")
        if known is None or option in known:  # a class of torch takes its own options
            target.carry(taken, f"{step}.optimizer_params.{option}")
        elif taken is not None and taken.value not in (None, False):
            source.put_back(taken, f"the optimizer {ours} has no such option")
    params = target.tree["steps"][network].get("optimizer_params", {})
    if params.get("weight_decay"):  # there it holds for biases and norm layers, too
        target.put(f"{step}.optimizer_params.exclude_norm_and_bias", False)
    target.mark(step, source.tree["train"].key_marks.get(theirs.rpartition(".")[2]))


def _losses(source: Source, target: Target, relativistic: bool, has_judge: bool) -> str | None:
    """Puts the generator's losses and returns the kind of adversarial loss."""
    judged = None
    train = source.section("train")
    assert train is not None
    found = [(f"train.{key}", key) for key in list(train) if key.endswith("_opt")]
    given = train.get("losses")
    if isinstance(given, MarkedList):
        source.take("train.losses")
        for number, section in enumerate(given):  # as if each stood under a key of its own
            key = f"losses[{number}]"
            train.put(key, section, given.marks[number])
            found.append((f"train.{key}", key))
    for path, key in found:
        section, mark = train.get(key), train.key_marks[key]
        if not isinstance(section, MarkedDict):
            source.spare(path, "it is empty")
            continue
        kind = str(section.get("type", "")).lower()
        if kind in _CRITERIA:
            _pixel(source, target, path, kind)
        elif kind in ("perceptualloss", "perceptualfp16loss"):
            _perceptual(source, target, path)
        elif kind in _PICTURE_LOSSES:
            _picture_loss(source, target, path, kind)
        elif kind in ("ganloss", "multiscaleganloss") and has_judge:
            judged = _adversarial(source, target, path, relativistic)
        else:
            near = f"; the nearest is {_NEAREST[kind]}" if kind in _NEAREST else ""
            source.lose(path, f"there is no loss like {section.get('type')} here{near}")
            continue
        target.mark(f"steps.generator.losses.{_name_of(kind)}", mark)
    return judged


def _name_of(kind: str) -> str:
    if kind in _PICTURE_LOSSES:
        return _PICTURE_LOSSES[kind][0]
    return "feature" if kind.startswith("perceptual") else "gan" if kind.endswith("ganloss") else "pix"


def _pixel(source: Source, target: Target, path: str, kind: str) -> None:
    place = "steps.generator.losses.pix"
    source.take(f"{path}.type")
    loss = {"type": "pix", "criterion": _CRITERIA[kind], "weight": source.number(f"{path}.loss_weight", 1.0)}
    for name, value in (loss | {"real": "hq", "fake": "gen"}).items():
        target.put(f"{place}.{name}", value)
    if kind == "charbonnierloss":
        target.put(f"{place}.eps", source.number(f"{path}.eps", 1e-12))
    elif kind == "huberloss":
        target.put(f"{place}.delta", source.number(f"{path}.delta", 1.0))
    source.lose(f"{path}.reduction", "losses are averaged", (None, "mean"))


def _picture_loss(source: Source, target: Target, path: str, kind: str) -> None:
    ours, same = _PICTURE_LOSSES[kind]
    place = f"steps.generator.losses.{ours}"
    source.take(f"{path}.type")
    loss = {"type": ours, "weight": source.number(f"{path}.loss_weight", 1.0), "fake": "gen"}
    for name, value in (loss if ours == "tv" else loss | {"real": "hq"}).items():
        target.put(f"{place}.{name}", value)
    for name in same:
        target.carry(source.take(f"{path}.{name}"), f"{place}.{name}")
    source.lose(f"{path}.reduction", "losses are averaged", (None, "mean"))
    if ours == "ldl":
        target.put(f"{place}.weights_learn", True)
        source.lose(f"{path}.criterion", "it is l1", (None, "l1"))
        train = source.section("train")
        if train is not None and train.get("ema_decay"):
            injector = {"type": "generator_ema", "generator": "generator", "in": "lq", "out": "gen_ema", "train": True}
            target.put("steps.generator.injectors.gen_ema", injector)
            target.put(f"{place}.reference", "gen_ema")
    elif ours == "dists":
        source.lose(f"{path}.use_input_norm", "inputs are normalised", (None, True))
        source.lose(f"{path}.resize_input", "pictures are taken at their size", (None, False))
        source.lose(f"{path}.as_loss", "it is a loss", (None, True))
        source.lose(f"{path}.load_weights", "weights are loaded", (None, True))
        source.lose(f"{path}.clip_min", "it is not cut off", (None, 0))


def _perceptual(source: Source, target: Target, path: str) -> None:
    source.take(f"{path}.type")
    layers = source.take(f"{path}.layer_weights")
    weights = dict(layers.value) if layers is not None and isinstance(layers.value, dict) else {"conv5_4": 1.0}
    network = str(source.value(f"{path}.vgg_type", "vgg19"))
    if network not in ("vgg16", "vgg19"):
        source.lose(path, f"there is no {network} here")
        return
    for layer in [k for k, weight in weights.items() if not _LAYER.fullmatch(str(k)) or not isinstance(weight, int | float)]:
        mark = layers.mark if layers is not None else source.tree.mark
        source.uncarried.append(
            Uncarried(f"{path}.layer_weights.{layer}", weights.pop(layer), mark, "it is no layer with a weight")
        )
    if not weights:
        source.lose(path, "no layer is left")
        return
    criterion = str(source.value(f"{path}.criterion", "l1")).lower()
    known = {"l1": "l1", "l2": "l2", "mse": "l2", "charbonnier": "charbonnier"}
    if criterion not in known:
        source.uncarried.append(_uncarried(source, path, "criterion", criterion, "l1 is taken"))
    shared = {
        "which_model_F": network,
        "layer_weights": weights,
        "use_input_norm": source.value(f"{path}.use_input_norm", True),
        "range_norm": source.value(f"{path}.range_norm", False),
        "real": "hq",
        "fake": "gen",
    }
    scale = source.number(f"{path}.loss_weight", 1.0)
    perceptual, style = source.number(f"{path}.perceptual_weight", 1.0), source.number(f"{path}.style_weight", 0)
    for kind, weight in (("feature", perceptual), ("style", style)):
        if weight:
            taken = known.get(criterion, "l1")
            loss = {
                "type": kind,
                "weight": weight * scale,
                "criterion": "l1" if kind == "style" and taken == "charbonnier" else taken,
            }
            for name, value in (loss | shared).items():
                target.put(f"steps.generator.losses.{kind}.{name}", value)


def _adversarial(source: Source, target: Target, path: str, relativistic: bool) -> str | None:
    source.take(f"{path}.type")
    kind = source.take(f"{path}.gan_type")
    name = str(kind.value) if kind is not None else "vanilla"
    if name not in _GAN_TYPES:
        source.put_back(kind, "there is no such adversarial loss here; 'gan' is taken")
    ours = _GAN_TYPES.get(name, "gan")
    if relativistic and ours == "gan":
        ours = "esrgan"
    elif relativistic:
        source.put_back(kind, "only with 'vanilla' is it relativistic here")
    loss = {"type": "generator_gan", "gan_type": ours, "weight": source.number(f"{path}.loss_weight", 1.0)}
    for key, value in (loss | {"discriminator": "discriminator", "real": "hq", "fake": "gen"}).items():
        target.put(f"steps.generator.losses.gan.{key}", value)
    for theirs, label, usual in (("real_label_val", "real_label", 1), ("fake_label_val", "fake_label", 0)):
        taken = source.take(f"{path}.{theirs}")
        if taken is not None and taken.value not in (None, usual):
            labels = ours in ("gan", "esrgan", "lsgan", "wgan_softplus")
            if labels:
                target.carry(taken, f"steps.generator.losses.gan.{label}")
            else:
                source.put_back(taken, f"{ours} compares with no labels")
    return ours


def _train(source: Source, target: Target, accumulation: int) -> None:
    _whole(source, target, "train.total_iter", "train.niter")
    if "train" not in target.tree:
        raise ConfigurationError("the file has no 'train.total_iter', the length of the run")
    target.carry(source.take("train.warmup_iter"), "train.warmup_iter")
    if accumulation > 1:
        target.put("train.mega_batch_factor", accumulation)
    _whole(source, target, "val.val_freq", "train.val_freq")
    decay = source.take("train.ema_decay")
    rate = decay.value if decay is not None and decay.value else 0
    if rate:
        target.put("train.ema.rate", rate, decay.mark if decay else None)
    else:
        target.put("train.ema.enabled", False, decay.mark if decay else None)
    _schedule(source, target)
    _switch(source, "train", "use_moa", ("moa_",), "batches are not mixed")
    target.mark("train", source.tree.key_marks["train"])


def _schedule(source: Source, target: Target) -> None:
    theirs, ours = "train.scheduler", "train.lr_scheme"
    section = source.section(theirs)
    if section is None:
        return
    kind = source.take(f"{theirs}.type")
    name = str(kind.value) if kind is not None else ""
    mark = kind.mark if kind is not None else None
    if name.lower() in ("multisteplr", "multisteprestartlr"):
        target.put(f"{ours}.type", "MultiStepLR", mark)
        for option, renamed in (("milestones", "gen_lr_steps"), ("gamma", "lr_gamma")):
            target.carry(source.take(f"{theirs}.{option}"), f"{ours}.{renamed}")
        restarts, weights = source.take(f"{theirs}.restarts"), source.take(f"{theirs}.restart_weights")
        if restarts is not None and restarts.value not in (None, [0]):
            target.carry(restarts, f"{ours}.restarts")
            target.carry(weights, f"{ours}.restart_weights")
    elif name.lower() == "cosineannealingrestartlr":
        target.put(f"{ours}.type", "CosineAnnealingLR_Restart", mark)
        periods = source.take(f"{theirs}.periods")
        target.carry(periods, f"{ours}.T_period")
        lengths = periods.value if periods is not None and isinstance(periods.value, list) else []
        starts = list(accumulate(each for each in lengths if isinstance(each, int)))[:-1]
        weights = source.take(f"{theirs}.restart_weights")
        if starts:
            target.put(f"{ours}.restarts", starts)
            if weights is not None and isinstance(weights.value, list):
                target.put(f"{ours}.restart_weights", weights.value[1:], weights.mark)
        target.carry(source.take(f"{theirs}.eta_min"), f"{ours}.eta_min")
    else:  # a class of torch, with that class's options
        target.put(f"{ours}.type", name, mark)
        for option in list(section):
            target.carry(source.take(f"{theirs}.{option}"), f"{ours}.{option}")


def _validation(source: Source, target: Target) -> None:
    target.carry(source.take("val.save_img"), "eval.save_images")
    metrics = source.section("val.metrics")
    names: list[str] = []
    borders = set()
    for key in list(metrics) if metrics is not None else []:
        path = f"val.metrics.{key}"
        if source.section(path) is None:
            continue
        kind = source.take(f"{path}.type")
        name = _METRICS.get(str(kind.value).lower()) if kind is not None else None
        if name is None:
            source.put_back(kind, "there is no such metric here")
            source.spare(path, "belongs to a metric that is not here")
            continue
        names.append(name + "_y" if source.value(f"{path}.test_y_channel", False) else name)
        borders.add(source.number(f"{path}.crop_border", 0))
        source.spare(f"{path}.better", "a metric knows which way is better")
        source.spare(f"{path}.num_threads", "metrics are computed on the device")
    if names:
        target.put("eval.metrics", names)
        target.put("eval.crop_border", max(borders))
        if len(borders) > 1:
            source.uncarried.append(
                _uncarried(
                    source, "val.metrics", "crop_border", sorted(borders), "one border holds for all; the largest is taken"
                )
            )
    source.lose("val.suffix", "files are named by their step")
    target.mark("eval", source.tree.key_marks.get("val"))


def _logs(source: Source, target: Target) -> None:
    for name in ("print_freq", "save_checkpoint_freq"):
        _whole(source, target, f"logger.{name}", f"logger.{name}")
    target.carry(source.take("logger.use_tb_logger"), "logger.tensorboard")
    source.lose("logger.wandb.project", "Weights & Biases is not written")
    source.lose("logger.wandb.resume_id", "Weights & Biases is not written")
    target.mark("logger", source.tree.key_marks.get("logger"))


def _whole(source: Source, target: Target, theirs: str, ours: str) -> None:
    """Carries a number that may be written as `1e3`."""
    mark = source.mark(theirs)
    value = source.number(theirs)
    if value is not None:
        target.put(ours, int(value), mark)


def _uncarried(source: Source, path: str, key: str, value: Any, reason: str) -> Uncarried:
    parent = source.section(path)
    return Uncarried(f"{path}.{key}", value, parent.mark if parent is not None else source.tree.mark, reason)


def _drop_empty(node: MarkedDict) -> None:
    """Removes entries that say nothing: nothing is lost with them."""
    for key in list(node):
        if isinstance(node[key], MarkedDict):
            _drop_empty(node[key])
        if node[key] is None or node[key] == {}:
            node.take(key)
