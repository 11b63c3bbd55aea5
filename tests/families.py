"""Small networks of every family of super-resolution that is known by its keys."""

from __future__ import annotations

from typing import Any

WINDOWED = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "img_size": 8}
PARTIAL = {"dim": 16, "n_blocks": 2, "kernel_size": 7}
OVERLAPPING = {
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 3],
    "window_size": 4,
    "compress_ratio": 3,
    "squeeze_factor": 4,
}
DUAL = {"img_size": 16, "embed_dim": 32, "split_size": [4, 8], "depth": [4, 3], "num_heads": [4, 4]}

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "esrgan": ("ESRGAN", "RRDBNet", {"nf": 8, "nb": 2}),
    "esrgan-x8": ("ESRGAN", "RRDBNet", {"nf": 8, "nb": 2, "scale": 8}),
    "esrgan-x2-unshuffle": ("ESRGAN", "RRDBNet", {"nf": 8, "nb": 2, "scale": 2}),
    "esrgan-x1-unshuffle": ("ESRGAN", "RRDBNet", {"nf": 8, "nb": 2, "scale": 1}),
    "compact": ("Compact", "SRVGGNetCompact", {"num_feat": 8, "num_conv": 3}),
    "compact-x2": ("Compact", "SRVGGNetCompact", {"num_feat": 8, "num_conv": 2, "scale": 2}),
    "rcan": ("RCAN", "RCAN", {"num_feat": 16, "num_group": 2, "num_block": 3}),
    "rcan-x3-plain": ("RCAN", "RCAN", {"num_feat": 16, "num_group": 2, "num_block": 2, "scale": 3, "norm": False}),
    "rcan-unshuffle": (
        "RCAN",
        "RCAN",
        {"num_feat": 16, "num_group": 2, "num_block": 2, "scale": 2, "norm": False, "unshuffle": True},
    ),
    "swinir": ("SwinIR", "SwinIR", WINDOWED),
    "swinir-x3": ("SwinIR", "SwinIR", {**WINDOWED, "scale": 3, "mlp_ratio": 4.0}),
    "swinir-light": ("SwinIR", "SwinIR", {**WINDOWED, "scale": 2, "upsampler": "pixelshuffledirect"}),
    "swinir-real": ("SwinIR", "SwinIR", {**WINDOWED, "upsampler": "nearest+conv", "resi_connection": "3conv"}),
    "swinir-real-x2": ("SwinIR", "SwinIR", {**WINDOWED, "scale": 2, "upsampler": "nearest+conv"}),
    "swinir-denoise": ("SwinIR", "SwinIR", {**WINDOWED, "scale": 1, "upsampler": ""}),
    "swinir-jpeg": (
        "SwinIR",
        "SwinIR",
        {**WINDOWED, "window_size": 7, "img_size": 14, "scale": 1, "upsampler": "", "img_range": 255.0},
    ),
    "span": ("SPAN", "SPAN", {"feature_channels": 8}),
    "span-plain-x2": ("SPAN", "SPAN", {"feature_channels": 8, "scale": 2, "norm": False}),
    "plksr": ("PLKSR", "PLKSR", PARTIAL),
    "plksr-tiny": ("PLKSR", "PLKSR", {**PARTIAL, "ccm_type": "ICCM", "use_ea": False, "scale": 2}),
    "realplksr": ("PLKSR", "RealPLKSR", PARTIAL),
    "realplksr-layer-norm": ("PLKSR", "RealPLKSR", {**PARTIAL, "layer_norm": True, "scale": 3}),
    "realplksr-dysample": ("PLKSR", "RealPLKSR", {**PARTIAL, "upsampler": "dysample"}),
    "realplksr-dysample-x3": ("PLKSR", "RealPLKSR", {**PARTIAL, "upsampler": "dysample", "scale": 3}),
    "realplksr-dysample-x1": ("PLKSR", "RealPLKSR", {**PARTIAL, "upsampler": "dysample", "scale": 1}),
    "hat": ("HAT", "HAT", OVERLAPPING),
    "hat-x3-identity": ("HAT", "HAT", {**OVERLAPPING, "scale": 3, "resi_connection": "identity", "qkv_bias": False}),
    "dat": ("DAT", "DAT", DUAL),
    "dat-light": ("DAT", "DAT", {**DUAL, "scale": 2, "upsampler": "pixelshuffledirect", "resi_connection": "3conv"}),
    "omnisr": ("OmniSR", "OmniSR", {"num_feat": 8, "res_num": 2, "window_size": 4}),
    "omnisr-x2": ("OmniSR", "OmniSR", {"num_feat": 16, "res_num": 1, "block_num": 2, "scale": 2, "bias": False}),
}
"""The family as spandrel calls it, our network, its options. Pictures of 17 x 22 pixels do not fit the windows."""
