"""U-Nets of guided-diffusion, improved-diffusion and DL-Art-School: outputs, features, gradients, and published layouts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.time_embedding import timestep_embedding
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout

WITHOUT_MEANING_HERE = ("use_checkpoint", "use_fp16", "dims")
"""Arguments of the references that change no number of a network for pictures in float32."""


def architecture(fixture: Fixture) -> str:
    """Our name of the class that `source` ends with."""
    source = fixture.json["source"]
    if source.startswith("DLAS"):
        return "unet_diffusion"
    project = "improved" if source.startswith("improved") else "guided"
    if "EncoderUNetModel" in source:
        return "guided_classifier"
    return f"{project}_superres" if "SuperResModel" in source else f"{project}_unet"


def network_options(fixture: Fixture, constructor: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `create_network` for a reference's constructor arguments."""
    options = {key: value for key, value in constructor.items() if key not in WITHOUT_MEANING_HERE}
    name = architecture(fixture)
    if name == "guided_classifier":  # the reference's classifier has the argument and no way up
        options.pop("num_heads_upsample", None)
        defaults = {"num_head_channels": -1, "use_scale_shift_norm": False, "resblock_updown": False, "pool": "adaptive"}
        options = {"channel_mult": [1, 2, 4, 8], **defaults, **options}
    elif "channel_mult" not in options:
        options["channel_mult"] = [1, 2, 4, 8]
    return {"which_model": name, **options}


def build(fixture: Fixture) -> nn.Module:
    """The network of a golden file."""
    network = create_network(network_options(fixture, fixture.json["constructor"]))
    network.load_state_dict(fixture.build_weights(fixture.json["weights"]))
    return network.eval()


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file of a U-Net may hold, computed by ours."""
    network = build(fixture)
    results: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: results.update({name: output})

    network.get_submodule("middle_block").register_forward_hook(keep("middle_block"))
    blocks = network.get_submodule("input_blocks")
    assert isinstance(blocks, nn.ModuleList)
    blocks[-1].register_forward_hook(keep("input_blocks_last"))
    inputs = {name.removeprefix("in."): tensor for name, tensor in fixture.tensors.items() if name.startswith("in.")}
    direction = inputs.pop("g", None)
    if "corruption_factor" in inputs:
        without = {name: value for name, value in inputs.items() if name != "corruption_factor"}
        with torch.no_grad():
            results["y_no_corruption"] = network(**without)
    inputs["x"] = inputs["x"].clone().requires_grad_()
    results["y"] = network(**inputs)
    if direction is not None:
        (results["y"] * direction).sum().backward()
        assert inputs["x"].grad is not None
        results["grad_x"] = inputs["x"].grad
        results |= {f"grad.{name}": weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    return results


def cases(fixture: Fixture) -> list[str]:
    return fixture.outputs


@handles("golden_guided_*", "golden_improved_*", "golden_dlas_superres*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    results = run(fixture)
    assert case in results, f"no comparison for the reference output '{case}'"
    compare(results[case], fixture.tensors[f"out.{case}"], "gradient" if case.startswith("grad") else "output", case)


@handles("golden_timestep_embedding*", cases=cases)
def check_embedding(fixture: Fixture, case: str) -> None:
    """Cases are named ``timestep_embedding.dim16_maxp100``."""
    expected = fixture.tensors[f"out.{case}"]
    _, _, period = case.partition("_maxp")
    more = {"max_period": float(period)} if period else {}
    compare(timestep_embedding(fixture.tensors["in.t_embed"], expected.shape[1], **more), expected, "output", case)


@handles("manifest_guided_*", "manifest_improved_*", "manifest_dlas_unet_diffusion*")
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, network_options(fixture, published_constructor(fixture)))


def published_constructor(fixture: Fixture) -> dict[str, Any]:
    """Arguments of the reference's constructor: a manifest gives them, or the network's attributes and its script's flags."""
    if "constructor" in fixture.json:
        return fixture.json["constructor"]
    flags = {key.removeprefix("classifier_"): value for key, value in fixture.json["resolved_script_args"].items()}
    constructor = dict(fixture.json["resolved_unet_attributes"])
    for key in ("use_scale_shift_norm", "resblock_updown", "use_new_attention_order", "pool"):
        if key in flags:
            constructor[key] = flags[key]
    if "image_size" in flags or "large_size" in flags:
        constructor["image_size"] = flags.get("image_size", flags.get("large_size"))
    if "SuperResModel" in fixture.json["source"]:
        constructor["in_channels"] //= 2  # the attribute counts both pictures
    return constructor
