"""Tells which network a checkpoint is of, and with which options, from the names and shapes of its weights alone.

One function a family below: it returns the options for which the architecture has just these weights, or None if the names are
of another family. What weights cannot tell (for instance a factor that the published networks share) is as published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dlas.errors import CheckpointError

Weights = Mapping[str, Tensor]
Options = dict[str, Any]


def recognise(weights: Weights, source: str) -> Options:
    """The network that weights belong to.

    Args:
        weights: tensors by name, as `read_state_dict` gives them.
        source: where they come from, for messages.

    Returns:
        Options of `create_network`, `which_model` among them.

    Raises:
        CheckpointError: no family has such names, or they are of a family and do not make sense in it.
    """
    for family, options_of in FAMILIES.items():
        try:
            options = options_of(weights)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(f"{source}: looks like {family}, but its layers are not those of it ({error!r})") from error
        if options is not None:
            return {"which_model": family, **options}
    names = ", ".join(list(weights)[:3])
    raise CheckpointError(
        f"{source}: the names of its weights ({names}, ...) belong to no known network; known are {', '.join(FAMILIES)}. "
        "For a network of your own name the folder of its training run, which holds its options"
    )


def _rrdbnet(w: Weights) -> Options | None:
    for first, last, block, ups in (
        ("conv_first", "conv_last", r"body\.(\d+)\.rdb1\.", r"conv_up(\d)\.weight"),
        ("conv_first", "conv_last", r"RRDB_trunk\.(\d+)\.RDB1\.", r"upconv(\d)\.weight"),
    ):
        blocks = _count(w, block)
        if blocks:
            dense = next(w[k] for k in w if re.match(block.replace(r"(\d+)", "0") + r"conv1\.weight", k))
            return _rrdb(w, w[f"{first}.weight"], w[f"{last}.weight"], dense, blocks, _count(w, ups, 1))
    if "model.1.sub.0.RDB1.conv1.0.weight" not in w:
        return None
    layers = sorted({int(found[1]) for k in w if (found := re.match(r"model\.(\d+)\.", k))})
    first_weight, last_weight = w["model.0.weight"], w[f"model.{layers[-1]}.weight"]
    blocks = _count(w, r"model\.1\.sub\.(\d+)\.RDB1")
    return _rrdb(w, first_weight, last_weight, w["model.1.sub.0.RDB1.conv1.0.weight"], blocks, len(layers) - 4)


def _rrdb(w: Weights, first: Tensor, last: Tensor, dense: Tensor, blocks: int, ups: int) -> Options:
    options: Options = {"out_nc": len(last), "nf": len(first), "nb": blocks, "gc": len(dense)}
    if any("bypass" in key for key in w):
        raise ValueError("blocks with gates, which only their training run describes")
    channels = first.shape[1]
    if first.shape[-1] != 3:
        raise ValueError("a first layer with a stride, which only its training run describes")
    # A folded input has 4 or 16 times as many channels as the picture.
    fold = math.isqrt(channels // len(last)) if channels % len(last) == 0 else 1
    fold = fold if fold in (2, 4) and channels == len(last) * fold**2 else 1
    scale = 2**ups // fold
    if fold == 1 and scale not in (4, 8):
        raise ValueError(f"enlargement by {scale}")
    return {**options, "in_nc": channels // fold**2, "scale": scale}


def _compact(w: Weights) -> Options | None:
    numbers = sorted(int(found[1]) for k in w if (found := re.fullmatch(r"body\.(\d+)\.weight", k)))
    if not numbers or any(not re.fullmatch(r"body\.\d+\.(weight|bias)", k) for k in w):
        return None
    first, last = w["body.0.weight"], w[f"body.{numbers[-1]}.weight"]
    kind = "prelu" if w.get("body.1.weight", first).ndim == 1 else "leakyrelu"
    channels = first.shape[1]
    options = {"num_in_ch": channels, "num_out_ch": channels, "num_feat": len(first), "num_conv": numbers[-1] // 2 - 1}
    return {**options, "scale": math.isqrt(len(last) // channels), "act_type": kind}


def _msrresnet(w: Weights) -> Options | None:
    if "upconv1.weight" not in w or ("HRconv.weight" not in w and "conv_hr.weight" not in w):
        return None
    blocks = _count(w, r"(?:body|recon_trunk)\.(\d+)\.conv1\.")
    if not blocks:
        return None
    first = w["conv_first.weight"]
    scale = 4 if "upconv2.weight" in w else math.isqrt(len(w["upconv1.weight"]) // len(first))
    channels = {"num_in_ch": first.shape[1], "num_out_ch": len(w["conv_last.weight"])}
    return {**channels, "num_feat": len(first), "num_block": blocks, "scale": scale}


def _edsr(w: Weights) -> Options | None:
    if "conv_first.weight" in w and "body.0.conv1.weight" in w and "conv_after_body.weight" in w:
        first, blocks, ups = w["conv_first.weight"], _count(w, r"body\.(\d+)\.conv1\."), "upsample"
    elif "head.0.weight" in w and "body.0.body.0.weight" in w and "body.0.body.3.conv_du.0.weight" not in w:
        first, blocks, ups = w["head.0.weight"], _count(w, r"body\.(\d+)\.body\.0\."), "tail.0"
    else:
        return None
    width = len(first)
    options = {"num_in_ch": first.shape[1], "num_out_ch": first.shape[1], "num_feat": width, "num_block": blocks}
    # Published: wide networks damp their residual branches.
    return {**options, "scale": _sub_pixel(w, ups), "res_scale": 0.1 if width >= 256 else 1.0}


def _rcan(w: Weights) -> Options | None:
    if "body.0.body.0.body.3.conv_du.0.weight" in w:
        layer = "head.1.weight" if "head.1.weight" in w else "head.0.weight"
        groups = _count(w, r"body\.(\d+)\.body\.0\.body")
        blocks = _count(w, r"body\.0\.body\.(\d+)\.body")
        squeezed, ups, last, norm = len(w["body.0.body.0.body.3.conv_du.0.weight"]), "tail.0", "tail.1.weight", None
    elif "body.0.residual_group.0.rcab.0.weight" in w:
        layer, ups, last, norm = "conv_first.weight", "upsample", "conv_last.weight", True
        groups = _count(w, r"body\.(\d+)\.residual_group")
        blocks = _count(w, r"body\.0\.residual_group\.(\d+)\.")
        squeezed = len(w["body.0.residual_group.0.rcab.3.attention.1.weight"])
    else:
        return None
    first, out_channels = w[layer], len(w[last])
    fold = math.isqrt(first.shape[1] // out_channels)
    norm = "sub_mean.weight" in w if norm is None else norm
    options: Options = {"num_in_ch": first.shape[1] // fold**2, "num_out_ch": out_channels, "num_feat": len(first)}
    options |= {"num_group": groups, "num_block": blocks, "squeeze_factor": len(first) // squeezed}
    if norm and "sub_mean.bias" in w:
        options["img_range"] = 255.0 if float(w["sub_mean.bias"].abs().max()) > 1 else 1.0
    return {**options, "norm": norm, "scale": _sub_pixel(w, ups) // fold, "unshuffle": fold > 1}


def _swinir(w: Weights) -> Options | None:
    block = "layers.0.residual_group.blocks.0"
    if f"{block}.attn.relative_position_bias_table" not in w or any("conv_block" in k for k in w):
        return None
    first = w["conv_first.weight"]
    options = _windows(w, block, "residual_group.blocks")
    channels, width = first.shape[1], len(first)
    upsampler, scale = "", 1
    if "conv_up1.weight" in w:
        upsampler, scale = "nearest+conv", 2 ** _count(w, r"conv_up(\d)\.weight", 1)
    elif "conv_before_upsample.0.weight" in w:
        upsampler, scale = "pixelshuffle", _sub_pixel(w, "upsample")
    elif "upsample.0.weight" in w:
        upsampler, scale = "pixelshuffledirect", math.isqrt(len(w["upsample.0.weight"]) // channels)
    window = options["window_size"]
    side = next((window * math.isqrt(len(v)) for k, v in w.items() if k.endswith(".attn_mask")), window)
    options |= {"in_chans": channels, "img_size": side, "embed_dim": width, "scale": scale, "upsampler": upsampler}
    options["patch_norm"] = "patch_embed.norm.weight" in w
    options["mlp_ratio"] = len(w[f"{block}.mlp.fc1.weight"]) / width
    # The published network for JPEG artefacts, alone with windows of 7, works in [0, 255].
    options["img_range"] = 255.0 if window == 7 else 1.0
    options["resi_connection"] = "3conv" if "layers.0.conv.2.weight" in w else "1conv"
    return options


def _hat(w: Weights) -> Options | None:
    block = "layers.0.residual_group.blocks.0"
    if f"{block}.conv_block.cab.0.weight" not in w:
        return None
    options = _windows(w, block, "residual_group.blocks")
    first, window = w["conv_first.weight"], options["window_size"]
    width = len(first)
    compressed = len(w[f"{block}.conv_block.cab.0.weight"])
    squeezed = len(w[f"{block}.conv_block.cab.3.attention.1.weight"])
    table = w["layers.0.residual_group.overlap_attn.relative_position_bias_table"]
    overlapping = math.isqrt(len(table)) - window + 1
    options |= {"in_chans": first.shape[1], "embed_dim": width, "overlap_ratio": (overlapping - window) / window}
    options |= {"compress_ratio": width // compressed, "squeeze_factor": width // squeezed}
    options["mlp_ratio"] = len(w[f"{block}.mlp.fc1.weight"]) / width
    options["resi_connection"] = "1conv" if "layers.0.conv.weight" in w else "identity"
    options["num_feat"] = len(w["conv_before_upsample.0.weight"])
    return {**options, "scale": _sub_pixel(w, "upsample")}


def _windows(w: Weights, block: str, blocks: str) -> Options:
    """Groups, blocks and heads of networks with square windows."""
    table = "attn.relative_position_bias_table"
    groups = _count(w, r"layers\.(\d+)\.")
    depths = [_count(w, rf"layers\.{group}\.{re.escape(blocks)}\.(\d+)\.") for group in range(groups)]
    heads = [w[f"layers.{group}.{blocks}.0.{table}"].shape[1] for group in range(groups)]
    window = (math.isqrt(len(w[f"{block}.{table}"])) + 1) // 2
    return {"depths": depths, "num_heads": heads, "window_size": window, "qkv_bias": f"{block}.attn.qkv.bias" in w}


def _dat(w: Weights) -> Options | None:
    block = "layers.0.blocks.0"
    if f"{block}.attn.attns.0.rpe_biases" not in w:
        return None
    first, groups = w["conv_first.weight"], _count(w, r"layers\.(\d+)\.")
    width, channels = len(first), first.shape[1]
    places = w[f"{block}.attn.attns.0.rpe_biases"]
    rows, columns = (int(places[:, axis].max()) + 1 for axis in (0, 1))
    depths = [_count(w, rf"layers\.{group}\.blocks\.(\d+)\.") for group in range(groups)]
    heads = [2 * len(w[f"layers.{group}.blocks.0.attn.attns.0.pos.pos3.2.weight"]) for group in range(groups)]
    masks = (v for k, v in w.items() if k.endswith(".attn_mask_0"))
    windows = next((len(v) for v in masks), 0)
    options: Options = {"in_chans": channels, "embed_dim": width, "split_size": [rows, columns], "depth": depths}
    options["img_size"] = math.isqrt(windows * rows * columns) or max(rows, columns)
    options["num_heads"] = heads
    options["expansion_factor"] = len(w[f"{block}.ffn.fc1.weight"]) / width
    options["qkv_bias"] = f"{block}.attn.qkv.bias" in w
    options["resi_connection"] = "3conv" if "layers.0.conv.2.weight" in w else "1conv"
    if "conv_last.weight" in w:
        return {**options, "upsampler": "pixelshuffle", "scale": _sub_pixel(w, "upsample")}
    scale = math.isqrt(len(w["upsample.0.weight"]) // channels)
    return {**options, "upsampler": "pixelshuffledirect", "scale": scale}


def _span(w: Weights) -> Options | None:
    if "conv_cat.weight" not in w or "block_1.c1_r.eval_conv.weight" not in w:
        return None
    first, last = w["conv_1.eval_conv.weight"], w["upsampler.0.weight"]
    options: Options = {"num_in_ch": first.shape[1], "num_out_ch": first.shape[1], "feature_channels": len(first)}
    options |= {"scale": math.isqrt(len(last) // first.shape[1]), "norm": "no_norm" not in w}
    return {**options, "fused": "conv_1.sk.weight" not in w}


def _plksr(w: Weights) -> Options | None:
    if "feats.1.channe_mixer.0.weight" not in w:
        return None
    sides = tuple(w[f"feats.1.channe_mixer.{layer}.weight"].shape[-1] for layer in (0, 2))
    kind = {(3, 1): "CCM", (1, 3): "ICCM", (3, 3): "DCCM"}[sides]  # type: ignore[index]
    options = _large_kernels(w, "channe_mixer")
    last = w[f"feats.{options['n_blocks'] + 1}.weight"]
    return {**options, "ccm_type": kind, "scale": math.isqrt(len(last) // 3)}


def _realplksr(w: Weights) -> Options | None:
    if "feats.1.channel_mixer.0.weight" not in w:
        return None
    options = _large_kernels(w, "channel_mixer")
    channels = w["feats.0.weight"].shape[1]
    last = w[f"feats.{options['n_blocks'] + 2}.weight"]
    options |= {"in_ch": channels, "out_ch": channels, "scale": math.isqrt(len(last) // channels)}
    options["layer_norm"] = "feats.1.layer_norm.weight" in w
    return {**options, "upsampler": "dysample" if "to_img.init_pos" in w else "pixelshuffle"}


def _large_kernels(w: Weights, mixer: str) -> Options:
    width, kernel = len(w["feats.0.weight"]), w["feats.1.lk.conv.weight"]
    options: Options = {"dim": width, "n_blocks": _count(w, rf"feats\.(\d+)\.{mixer}\.", 1), "kernel_size": kernel.shape[-1]}
    return {**options, "split_ratio": len(kernel) / width, "use_ea": "feats.1.attn.f.0.weight" in w}


def _omnisr(w: Weights) -> Options | None:
    block = "residual_layer.0.residual_layer"
    if f"{block}.0.layer.0.fn.0.weight" not in w:
        return None
    first = w["input.weight"]
    blocks = _count(w, r"residual_layer\.0\.residual_layer\.(\d+)\.layer\.")
    places = next((v for k, v in w.items() if k.endswith("rel_pos_bias.weight")), None)
    window = 8 if places is None else (math.isqrt(len(places)) + 1) // 2
    channels = first.shape[1]
    options: Options = {"num_in_ch": channels, "num_out_ch": channels, "num_feat": len(first), "block_num": blocks}
    options |= {"res_num": _count(w, r"residual_layer\.(\d+)\."), "pe": places is not None, "window_size": window}
    return {**options, "scale": math.isqrt(len(w["up.0.weight"]) // channels), "bias": "input.bias" in w}


FAMILIES: dict[str, Callable[[Weights], Options | None]] = {
    "RRDBNet": _rrdbnet,
    "SRVGGNetCompact": _compact,
    "MSRResNet": _msrresnet,
    "RCAN": _rcan,
    "EDSR": _edsr,
    "HAT": _hat,
    "SwinIR": _swinir,
    "DAT": _dat,
    "SPAN": _span,
    "PLKSR": _plksr,
    "RealPLKSR": _realplksr,
    "OmniSR": _omnisr,
}
"""By the name of the architecture; asked in this order."""


def _count(w: Weights, pattern: str, start: int = 0) -> int:
    """How many numbers from `start` on the pattern's group takes; 0 if the first is missing."""
    numbers = {int(found[1]) for key in w if (found := re.match(pattern, key))}
    count = 0
    while start + count in numbers:
        count += 1
    return count


def _sub_pixel(w: Weights, layer: str) -> int:
    """Enlargement of a `SubPixelUpsample`: each of its layers is by 2, or its only one is by 3."""
    shapes = [torch.Size(v.shape) for k, v in w.items() if re.fullmatch(rf"{re.escape(layer)}\.\d+\.weight", k)]
    return math.prod(math.isqrt(shape[0] // shape[1]) for shape in shapes)
