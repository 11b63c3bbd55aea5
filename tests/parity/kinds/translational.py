"""Losses that compare a network's output with its output for another view, and the patches they need."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.injectors import create_injector
from dlas.losses import create_loss
from dlas.losses.invariance import GeometricLoss, TranslationalLoss
from parity.harness import Fixture, compare, handles

# The reference names the motions by dimension and number of quarter turns.
MOTIONS = {
    "flip_h(dim2)": "flip_vertical",
    "flip_w(dim3)": "flip_horizontal",
    "rot90 k=1": "quarter_turn",
    "rot90 k=2": "half_turn",
    "rot90 k=3": "three_quarter_turn",
}


def cases(fixture: Fixture) -> Iterable[str]:
    """Entries with a number (the others say what the reference raises), and the stored tensors."""
    yield from (name for name, value in fixture.json["values"].items() if not isinstance(value, str))
    yield from (f"out.{name}" for name in fixture.outputs)


def generator(fixture: Fixture) -> nn.Module:
    layers: list[nn.Module] = []
    description = fixture.json["toy_generator"]
    for name, sizes in re.findall(r"(Conv2d|LeakyReLU|nearest) ?x?\(?([\d.,]+)", description["layers"]):
        numbers = [float(number) for number in sizes.split(",")]
        if name == "Conv2d":
            layers.append(nn.Conv2d(*[int(number) for number in numbers]))
        elif name == "LeakyReLU":
            layers.append(nn.LeakyReLU(numbers[0]))
        else:
            layers.append(nn.Upsample(scale_factor=numbers[0], mode="nearest"))
    network = nn.Sequential(*layers)
    network.load_state_dict(fixture.build_weights(description["weights"]))
    return network


def state_of(fixture: Fixture, network: nn.Module) -> dict[str, Tensor]:
    lq, config = fixture.tensors["in.lq"], fixture.json["config"]
    patches = create_injector({"type": "image_patch", "in": "lq", "out": "plq", "patch_size": config["lq_patch"]})
    state = {"lq": lq, **patches({"lq": lq}, Context({}))}
    return state | {"gen": network(state["plq"]), "gen_full": network(lq)}


@handles("golden_translational_*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    network, config = generator(fixture), fixture.json["config"]
    with torch.no_grad():
        state = state_of(fixture, network)
        context = Context({"g": network})
        if case.startswith("out."):
            key = case.removeprefix("out.").removeprefix("patch.")
            compare(state[key], fixture.tensors[case], "output", case)
            return
        kind, _, rest = re.split(r"([.(])", case, maxsplit=1)
        options: dict[str, Any] = {"type": kind, "generator": "g"}
        if kind == "translational":
            corner, options["criterion"] = rest.split(".")
            sizes = {"patch_size": config["loss_patch_size"], "overlap": config["loss_overlap"]}
            loss = create_loss(options | sizes | {"real": "gen", "fake": ["plq"]})
            assert isinstance(loss, TranslationalLoss)
            found = loss.compare(state, context, corner)
        elif kind == "geometric":
            motion, options["criterion"] = rest.rsplit(".", 1)
            loss = create_loss(options | {"real": "gen_full", "fake": ["lq"]})
            assert isinstance(loss, GeometricLoss)
            found = loss.compare(state, context, MOTIONS[motion])
        elif kind == "recursive":
            told = re.match(r"depth=(\d+),downsample=([\d.]+),(\w+),", rest)
            assert told, f"'{rest}' does not tell depth, factor and criterion"
            sizes = {"recursive_depth": int(told[1]), "downsample_factor": float(told[2]), "criterion": told[3]}
            found = create_loss(options | sizes | {"real": "gen_full", "fake": ["lq"]})(state, context)
        else:
            pytest.fail(f"no check is written for the entry '{case}'", pytrace=False)
    compare(found, torch.tensor(fixture.json["values"][case], dtype=found.dtype), "float64", case)
