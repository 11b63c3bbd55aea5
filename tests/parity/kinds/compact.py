"""SRVGGNetCompact and the layouts of Real-ESRGAN's small models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dlas.archs import create_network
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout


def network_options(constructor: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `create_network` for the reference's constructor arguments."""
    return {"which_model_G": "SRVGGNetCompact", **{{"upscale": "scale"}.get(k, k): v for k, v in constructor.items()}}


@handles("golden_srvgg_*", cases=lambda fixture: fixture.outputs)
def check(fixture: Fixture, case: str) -> None:
    entry = fixture.json["cases"][case]
    network = create_network(network_options(entry["constructor"]))
    network.load_state_dict(fixture.build_weights(entry["weights"]))
    with torch.no_grad():
        compare(network.eval()(fixture.tensors["in.x"]), fixture.tensors[f"out.{case}"], "output", case)


@handles("manifest_*", when=lambda fixture: "SRVGGNetCompact" in fixture.json.get("source", ""))
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, network_options(fixture.json["constructor"]))
