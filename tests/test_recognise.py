"""Networks are told from the names and shapes of their weights, with the options that they were built with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.errors import CheckpointError
from dlas.interop.recognise import FAMILIES, recognise
from dlas.interop.state_dicts import load_into
from families import CASES

OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "grey": ("", "RRDBNet", {"nf": 8, "nb": 1, "in_nc": 1, "out_nc": 1}),
    "grey-x2": ("", "RRDBNet", {"nf": 8, "nb": 1, "in_nc": 1, "out_nc": 1, "scale": 2}),
    "msrresnet": ("", "MSRResNet", {"num_feat": 8, "num_block": 2}),
    "msrresnet-x3": ("", "MSRResNet", {"num_feat": 8, "num_block": 2, "scale": 3}),
    "msrresnet-x2": ("", "MSRResNet", {"num_feat": 8, "num_block": 2, "scale": 2}),
    "edsr": ("", "EDSR", {"num_feat": 8, "num_block": 2}),
    "edsr-x3": ("", "EDSR", {"num_feat": 8, "num_block": 2, "scale": 3}),
    "edsr-x8": ("", "EDSR", {"num_feat": 8, "num_block": 2, "scale": 8}),
    "compact-relu": ("", "SRVGGNetCompact", {"num_feat": 8, "num_conv": 2, "act_type": "leakyrelu"}),
    "span-fused": ("", "SPAN", {"feature_channels": 8, "fused": True}),
    "rcan-0-1": ("", "RCAN", {"num_feat": 16, "num_group": 2, "num_block": 2, "img_range": 1.0}),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in {**CASES, **OTHERS}.items()])
def test_networks_are_recognised_by_their_keys(case: tuple[str, str, dict[str, Any]]) -> None:
    _, name, options = case
    torch.manual_seed(0)
    network = create_network({"which_model": name, **options}).eval()
    found = recognise(network.state_dict(), "w.pth")
    assert found["which_model"] == name
    again = create_network(found).eval()
    load_into(again, network.state_dict(), source="w.pth")
    x = torch.rand(1, found.get("in_nc", 3), 20, 24)
    with torch.no_grad():
        torch.testing.assert_close(again(x), network(x))


def renamed(network: nn.Module, *pairs: tuple[str, str]) -> dict[str, Tensor]:
    state_dict = {}
    for key, value in network.state_dict().items():
        for new, old in pairs:
            key = key.replace(new, old)
        state_dict[key] = value
    return state_dict


def test_names_of_older_releases() -> None:
    network = create_network({"which_model": "RRDBNet", "nf": 8, "nb": 2, "gc": 4})
    second = renamed(network, ("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv"),
                     ("body.", "RRDB_trunk."), ("rdb", "RDB"))  # fmt: skip
    first = renamed(network, ("conv_first", "model.0"), ("conv_body", "model.1.sub.2"), ("conv_up1", "model.3"),
                    ("conv_up2", "model.6"), ("conv_hr", "model.8"), ("conv_last", "model.10"),
                    ("body.", "model.1.sub."), ("rdb", "RDB"))  # fmt: skip
    first = {k.replace(".weight", ".0.weight").replace(".bias", ".0.bias") if "RDB" in k else k: v for k, v in first.items()}
    for state_dict in (first, second):
        found = recognise(state_dict, "w.pth")
        assert found == {"which_model": "RRDBNet", "in_nc": 3, "out_nc": 3, "nf": 8, "nb": 2, "gc": 4, "scale": 4}
        again = create_network(found)
        load_into(again, state_dict, source="w.pth")
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
    msr = create_network({"which_model": "MSRResNet", "num_feat": 8, "num_block": 2})
    old = renamed(msr, ("body.", "recon_trunk."), ("conv_hr", "HRconv"))
    assert recognise(old, "w.pth")["num_block"] == 2


def test_every_family_is_tried() -> None:
    assert {name for _, name, _ in [*CASES.values(), *OTHERS.values()]} == set(FAMILIES)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"encoder.weight": torch.ones(1)}, r"a\.pth: the names of its weights \(encoder\.weight, \.\.\.\) belong to no known"),
        (create_network({"which_model": "RRDBNetBypass", "nf": 8, "nb": 1}).state_dict(), r"looks like RRDBNet.*gates"),
        ({"conv_cat.weight": torch.ones(1), "block_1.c1_r.eval_conv.weight": torch.ones(1)}, "looks like SPAN"),
    ],
)  # fmt: skip
def test_what_is_not_recognised(weights: dict[str, Tensor], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        recognise(weights, "a.pth")
