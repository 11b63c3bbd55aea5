"""Checkpoints are those that other programs read and write: `spandrel`, which knows the field's networks by their keys.

For each family: what ours saves is recognised and run by spandrel with the same result, and what spandrel's network of the same
settings saves is loaded and run by ours with the same result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.compat.torchvision import prepare_torchvision
from dlas.interop.state_dicts import load_into

prepare_torchvision()
spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed; the extra 'test' has it")
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # in its networks

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


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, list[Tensor]]:
    """The family, our network with random weights, and pictures to try it on."""
    family, name, options = request.param
    torch.manual_seed(0)
    network = create_network({"which_model": name, **options}).eval()
    scramble(network, 0.1)
    sides = [(17, 22)]
    if "img_size" in options:  # masks of this size are stored, others are made
        sides.append((options["img_size"], options["img_size"]))
    # spandrel's ESRGAN pads for the unshuffling of pixels by multiples that ours refuses
    multiple = getattr(network, "unshuffle", 1) if name == "RRDBNet" else 1
    return family, network, [torch.rand(1, 3, *(side // multiple * multiple for side in pair)) for pair in sides]


def scramble(network: nn.Module, deviation: float) -> None:
    """So that no gain, shift, temperature or running statistic is what it is at first."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1 or weight.numel() < 10:
                weight.add_(deviation * torch.randn_like(weight))
        for key, value in network.named_buffers():
            if "running" in key:
                value.uniform_(0.5, 1.5)


def run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x.clone())  # some of spandrel's networks change their input


def loaded(network: nn.Module) -> Any:
    return spandrel.ModelLoader().load_from_state_dict(dict(network.state_dict()))


def test_spandrel_reads_and_runs_ours(case: tuple[str, nn.Module, list[Tensor]]) -> None:
    family, network, pictures = case
    theirs = loaded(network)
    assert theirs.architecture.id == family
    for x in pictures:
        expected = run(network, x)
        assert expected.shape[-1] == theirs.scale * x.shape[-1]
        assert expected.std() > 1e-3, "the comparison would say nothing"
        torch.testing.assert_close(run(theirs.model.eval(), x), expected, rtol=1e-4, atol=1e-5)


def test_ours_reads_and_runs_what_spandrel_makes(case: tuple[str, nn.Module, list[Tensor]]) -> None:
    """Constants in the state dict, such as masks, are theirs here: nothing of them was copied from ours."""
    _, network, pictures = case
    known = loaded(network).model
    torch.manual_seed(1)
    theirs = type(known)(**known.hyperparameters).eval()
    scramble(theirs, 0.1)
    load_into(network, theirs.state_dict(), source="spandrel")
    for x in pictures:
        torch.testing.assert_close(run(network, x), run(theirs, x), rtol=1e-4, atol=1e-5)


def test_constants_are_spandrels(case: tuple[str, nn.Module, list[Tensor]]) -> None:
    _, network, _ = case
    known = loaded(network).model
    theirs = type(known)(**known.hyperparameters).state_dict()
    rename = getattr(network, "rename_state_dict", dict)
    parameters = dict(network.named_parameters())
    constants = {k: v for k, v in rename(theirs).items() if k not in parameters and "running" not in k}
    for key, value in constants.items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=0, atol=1e-7, msg=key)
