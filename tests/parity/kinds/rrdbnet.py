"""RRDBNet: the original's and BasicSR's form, DL-Art-School's variants, and the layouts of published checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.archs import create_network
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout, published_layout

BASICSR = {"num_in_ch": "in_nc", "num_out_ch": "out_nc", "num_feat": "nf", "num_block": "nb", "num_grow_ch": "gc"}
DLAS = {"in_channels": "in_nc", "out_channels": "out_nc", "mid_channels": "nf", "num_blocks": "nb", "growth_channels": "gc"}
OPTION_OF_REFERENCE = BASICSR | DLAS
"""What the classes of these projects call our options; other options have our names."""


def network_options(fixture: Fixture, constructor: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Options of `create_network` for a reference's constructor arguments and state-dict keys."""
    options = {OPTION_OF_REFERENCE.get(key, key): value for key, value in constructor.items() if key != "body_block"}
    if any(".bypass." in key for key in keys):
        return {"which_model_G": "RRDBNetBypass", **options}
    if fixture.json["source"].startswith("DLAS"):
        options |= {"long_skip": "trunk", "pixel_unshuffle": False}
    return {"which_model_G": "RRDBNet", **options}


def build(fixture: Fixture, entry: Mapping[str, Any]) -> nn.Module:
    """The network of one `constructor` and `weights` of a golden file."""
    network = create_network(network_options(fixture, entry["constructor"], entry["weights"]))
    network.load_state_dict(fixture.build_weights(entry["weights"]))
    return network.eval()


def single_cases(fixture: Fixture) -> list[str]:
    return [*fixture.outputs, *(["y.float64"] if "fp32_noise" in fixture.json else [])]


@lru_cache(maxsize=1)
def run_single(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file of one network may hold, computed by ours."""
    network = build(fixture, fixture.json)
    results: dict[str, Tensor] = {}
    for name in ("conv_first", "body", "conv_body"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: results.update({f"after_{name}": output})
        )
    x = fixture.tensors["in.x"].clone().requires_grad_()
    results["y"] = network(x)
    (results["y"] * fixture.tensors["in.g"]).sum().backward()
    assert x.grad is not None
    return results | {"grad_x": x.grad} | {f"grad.{name}": weight.grad for name, weight in network.named_parameters()}


@handles("golden_rrdbnet_*", cases=single_cases)
def check_single(fixture: Fixture, case: str) -> None:
    if case == "y.float64":
        y = build(fixture, fixture.json).double()(fixture.tensors["in.x"].double())
        # Our float64 is off the reference's float32 by what the reference's own float64 is, to float64's rounding.
        noise = fixture.json["fp32_noise"]["max_abs_fp32_minus_fp64"]
        assert (y - fixture.tensors["out.y"]).abs().max().item() == pytest.approx(noise, rel=1e-6)
        return
    results = run_single(fixture)
    assert case in results, f"no comparison for the reference output '{case}'"
    compare(results[case], fixture.tensors[f"out.{case}"], "gradient" if case.startswith("grad") else "output", case)


@lru_cache(maxsize=1)
def run_variants(fixture: Fixture) -> dict[str, Tensor]:
    """The outputs of every case, and the maps of the gates."""
    results: dict[str, Tensor] = {}
    for name, entry in fixture.json["cases"].items():
        network = build(fixture, entry)
        blocks = network.get_submodule("body").children()
        for index, block in enumerate(block for block in blocks if hasattr(block, "bypass")):
            block.get_submodule("bypass").register_forward_hook(
                lambda module, inputs, output, index=index: results.update({f"bypass_map{index}": output})
            )
        with torch.no_grad():
            results[name] = network(fixture.tensors["in.x"])
    return results


@handles("golden_dlas_rrdb_variants*", cases=lambda fixture: fixture.outputs)
def check_variant(fixture: Fixture, case: str) -> None:
    results = run_variants(fixture)
    assert case in results, f"no comparison for the reference output '{case}'"
    compare(results[case], fixture.tensors[f"out.{case}"], "output", case)


def is_rrdbnet(fixture: Fixture) -> bool:
    return "RRDBNet" in fixture.json.get("source", "")


def manifest_cases(fixture: Fixture) -> list[str]:
    return ["layout", *(case for case in ("example_map", "example_old_arch") if case in fixture.json)]


@handles("manifest_*", cases=manifest_cases, when=is_rrdbnet)
def check_manifest(fixture: Fixture, case: str) -> None:
    constructor, layout = fixture.json["constructor"], published_layout(fixture)
    options = network_options(fixture, constructor, layout)
    if case == "layout":
        check_layout(fixture, options)
        return
    with torch.device("meta"):
        network = create_network(options)
    rename = network.rename_state_dict
    pairs = fixture.json[case]
    if case == "example_map":  # the second release's name -> the present one
        renamed = rename({name: layout[name] for name in pairs})
        assert list(renamed) == list(pairs.values())
    else:  # the second release's name -> the first's
        renamed = rename({old: layout[name] for name, old in pairs.items()})
        assert list(renamed) == list(rename({name: layout[name] for name in pairs}))
    own = network.state_dict()
    assert {name: tensor.shape for name, tensor in renamed.items()} == {name: own[name].shape for name in renamed}
    assert list(rename(renamed)) == list(renamed)
