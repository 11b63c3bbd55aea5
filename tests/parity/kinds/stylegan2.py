"""StyleGAN2 with rosinality's names: generator, discriminator, its losses, and filtered resampling."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.stylegan2 import StyledConv, filter_kernel, filter_resample
from dlas.losses.penalties import r1_penalty
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout

OPTIONS = ("size", "channel_multiplier", "blur_kernel")
"""Arguments of the reference's constructors that the discriminator takes; the others are the generator's."""

MADE = ("w", "latent", "img_")
"""Outputs of the generator."""

RESAMPLED: dict[str, dict[str, Any]] = {
    "up2": {"up": 2, "pad": (2, 1)},
    "down2": {"down": 2, "pad": (1, 1)},
    "blur": {"pad": (2, 1)},
}
"""What the reference's modules for these do with a filter of four taps."""


def build(fixture: Fixture, part: str = "discriminator") -> nn.Module:
    weights = fixture.build_weights(fixture.json["weights"][part])
    options = fixture.json["constructor"]
    name, widest = "stylegan2_rosinality_gen", "input.input"
    if part == "discriminator":
        options = {key: value for key, value in options.items() if key in OPTIONS}
        name, widest = "stylegan2_rosinality_disc", "final_conv.0.weight"  # the last block is the widest
    if "channel_override" in fixture.json:
        options = options | {"max_channels": weights[widest].shape[1 if part == "generator" else 0]}
    network = create_network({"which_model": name, **options})
    kept = {key: value for key, value in network.state_dict().items() if key.endswith(".kernel")}
    network.load_state_dict(kept | weights)
    return network.eval()


def cases(fixture: Fixture) -> list[str]:
    return [*fixture.outputs, *fixture.json["values"]]


@handles("golden_stylegan2_*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    if case.startswith(MADE):
        compare(made(fixture, case), fixture.tensors[f"out.{case}"], "output", case)
        return
    if case.startswith("styledconv"):
        compare(styled(fixture, fixture.tensors[f"out.{case}"].shape[-1]), fixture.tensors[f"out.{case}"], "output", case)
        return
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


@torch.no_grad()
def made(fixture: Fixture, case: str) -> Tensor:
    """What the generator, with the noise that it keeps, makes in this case."""
    generator, z, z2 = build(fixture, "generator"), fixture.tensors["in.z"], fixture.tensors["in.z2"]
    w = generator.style(z)
    if case == "w":
        return w
    if case == "latent":
        return generator(z)[1]
    if told := re.fullmatch(r"img_mix_inject(\d+)", case):
        return generator([z, z2], inject_index=int(told[1]))[0]
    if told := re.fullmatch(r"img_trunc([\d.]+)", case):
        return generator(z, truncation=float(told[1]), truncation_latent=generator.style(z2).mean(0, keepdim=True))[0]
    if case == "img_from_w":
        return generator(w, input_is_latent=True)[0]
    assert case == "img_fixed_noise", f"no comparison for '{case}'"
    return generator([z])[0]


@torch.no_grad()
def styled(fixture: Fixture, side: int) -> Tensor:
    """A styled convolution that stands alone, with an output `side` pixels wide."""
    x, style, noise = (fixture.tensors[f"in.{name}"] for name in ("sc", "sw", "sn"))
    (entry,) = (entry for name, entry in fixture.json["weights"].items() if name.startswith("styledconv"))
    weights = fixture.build_weights(entry)
    _, out_channels, in_channels, _, _ = weights["conv.weight"].shape
    layer = StyledConv(in_channels, out_channels, style.shape[1], taps=(1, 3, 3, 1) if side > x.shape[-1] else None)
    layer.load_state_dict({key: value for key, value in layer.state_dict().items() if key.endswith(".kernel")} | weights)
    return layer(x, style, noise)


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


@handles("manifest_stylegan2_rosinality_g*")
def check_generator_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, {"which_model_G": "stylegan2_rosinality_gen", **fixture.json["constructor"]})
