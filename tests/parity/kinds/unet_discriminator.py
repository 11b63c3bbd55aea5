"""The U-Net discriminator: evaluation, two forwards in training with the spectral norms they leave, gradients, layout."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout


def build(fixture: Fixture, **more: Any) -> nn.Module:
    network = create_network({"which_model_D": "UNetDiscriminatorSN", **fixture.json["constructor"], **more})
    network.load_state_dict(fixture.build_weights(fixture.json["weights"]))
    return network


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file may hold, computed by ours."""
    x = fixture.tensors["in.x"].clone().requires_grad_()
    network = build(fixture)
    with torch.no_grad():
        results = {"eval": network.eval()(x), "eval_no_skip": build(fixture, skip_connection=False).eval()(x)}
    results["train1"] = network.train()(x)
    (results["train1"] * fixture.tensors["in.g"]).sum().backward()
    assert x.grad is not None
    results |= {"train1.grad_x": x.grad}
    results |= {f"train1.grad.{name}": weight.grad for name, weight in network.named_parameters()}
    with torch.no_grad():
        results["train2"] = network(x)
    # The reference wrote its buffers down after the second forward, which had changed them in place once more: that these
    # are equal then, and both outputs, says that each forward took one step of power iteration.
    return results | {f"after_train1.{name}": value for name, value in network.state_dict().items()}


@handles("golden_unet_discriminator_*", cases=lambda fixture: fixture.outputs)
def check(fixture: Fixture, case: str) -> None:
    results = run(fixture)
    assert case in results, f"no comparison for the reference output '{case}'"
    compare(results[case], fixture.tensors[f"out.{case}"], "gradient" if ".grad" in case else "output", case)


@handles("manifest_UNetDiscriminatorSN*")
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, {"which_model_D": "UNetDiscriminatorSN", **fixture.json["constructor"]})
