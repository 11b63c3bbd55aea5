"""StyleGAN2 with rosinality's names: the discriminator, its losses, and filtered resampling."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.stylegan2 import filter_kernel, filter_resample
from dlas.losses.penalties import r1_penalty
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout

NOT_BUILT = ("img_", "latent", "styledconv", "w")
"""Outputs of the generator, which the project does not have yet."""

OPTIONS = ("size", "channel_multiplier", "blur_kernel")
"""Arguments of the reference's constructors that the discriminator takes; the others are the generator's."""

RESAMPLED: dict[str, dict[str, Any]] = {
    "up2": {"up": 2, "pad": (2, 1)},
    "down2": {"down": 2, "pad": (1, 1)},
    "blur": {"pad": (2, 1)},
}
"""What the reference's modules for these do with a filter of four taps."""


def build(fixture: Fixture) -> nn.Module:
    weights = fixture.build_weights(fixture.json["weights"]["discriminator"])
    options = {key: value for key, value in fixture.json["constructor"].items() if key in OPTIONS}
    if "channel_override" in fixture.json:  # the last block is the widest
        options["max_channels"] = weights["final_conv.0.weight"].shape[0]
    network = create_network({"which_model_D": "stylegan2_rosinality_disc", **options})
    kept = {key: value for key, value in network.state_dict().items() if key.endswith(".kernel")}
    network.load_state_dict(kept | weights)
    return network.eval()


def cases(fixture: Fixture) -> list[str]:
    return [*fixture.outputs, *fixture.json["values"]]


@handles("golden_stylegan2_*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    if case.startswith(NOT_BUILT):
        pytest.skip("not built yet: the generator of StyleGAN2")
    if case.startswith("upfirdn."):
        kind = case.removeprefix("upfirdn.")
        kernel = filter_kernel((1, 3, 3, 1)) * RESAMPLED[kind].get("up", 1) ** 2
        found = filter_resample(fixture.tensors["in.upfirdn"], kernel, **RESAMPLED[kind])
        compare(found, fixture.tensors[f"out.{case}"], "output", case)
        return
    network, x = build(fixture), fixture.tensors["in.d.x"]
    if told := re.fullmatch(r"d(?:_batch(\d+))?", case):
        with torch.no_grad():
            compare(network(x[: int(told[1]) if told[1] else len(x)]), fixture.tensors[f"out.{case}"], "output", case)
        return
    compare(_loss(network, x, case), torch.tensor(fixture.json["values"][case]), "output", case)


def _loss(network: nn.Module, x: Tensor, case: str) -> Tensor:
    if case == "d_r1_loss":
        real = x.clone().requires_grad_()
        return r1_penalty(network(real), real)
    if case.startswith("g_nonsaturating"):
        return F.softplus(-network(-x)).mean()
    assert case.startswith("d_logistic"), f"no comparison for '{case}'"
    return F.softplus(-network(x)).mean() + F.softplus(network(-x)).mean()


@handles("manifest_stylegan2_rosinality_d*")
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, {"which_model_D": "stylegan2_rosinality_disc", **fixture.json["constructor"]})
