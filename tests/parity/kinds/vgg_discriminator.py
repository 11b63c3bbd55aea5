"""VGG-style discriminators, with batch and group normalisation, and the layouts of their checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlas.archs import create_network
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout, published_layout


def network_options(constructor: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Options of `create_network` for a reference's constructor arguments and state-dict keys."""
    if "num_feat" in constructor:
        return {"which_model_D": "VGGStyleDiscriminator", **constructor}
    options = dict(constructor)
    if "input_img_factor" in options:  # a factor on 128 pixels
        options["image_size"] = int(128 * options.pop("input_img_factor"))
    batch_normalised = any(key.endswith("running_mean") for key in keys)
    return {"which_model_D": "discriminator_vgg_128" if batch_normalised else "discriminator_vgg_128_gn", **options}


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file may hold, computed by our network: a forward in evaluation, then one in training."""
    weights = fixture.json["weights"]
    network = create_network(network_options(fixture.json["constructor"], weights))
    network.load_state_dict(fixture.build_weights(weights))
    x = fixture.tensors["in.x"]
    with torch.no_grad():
        evaluated = network.eval()(x)
    trained = network.train()(x)
    trained.sum().backward()
    results = {"y": evaluated, "eval": evaluated, "train": trained}
    results |= {f"train.grad.{name}": weight.grad for name, weight in network.named_parameters()}
    return results | {f"after_train.{name}": value for name, value in network.state_dict().items()}


@handles("golden_vgg_discriminator*", "golden_dlas_vgg_*", cases=lambda fixture: fixture.outputs)
def check(fixture: Fixture, case: str) -> None:
    results = run(fixture)
    assert case in results, f"no comparison for the reference output '{case}'"
    expected = fixture.tensors[f"out.{case}"]
    kind = "gradient" if ".grad." in case else "output" if expected.is_floating_point() else "exact"
    compare(results[case], expected, kind, case)


def is_vgg_discriminator(fixture: Fixture) -> bool:
    source = fixture.json.get("source", "")
    return "VGGStyleDiscriminator" in source or "Discriminator_VGG_128" in source


@handles("manifest_*", when=is_vgg_discriminator)
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, network_options(fixture.json["constructor"], published_layout(fixture)))
