"""Discrete autoencoders: codes, reconstructions, a step of training with the codebook it leaves, layout."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout

COMMITMENT = 0.25
"""Weight of the commitment in the loss whose gradients the reference wrote down."""


def build(fixture: Fixture, entry: Mapping[str, Any]) -> nn.Module:
    network = create_network({"which_model": "dvae", **entry["constructor"]})
    network.load_state_dict(fixture.build_weights(entry["weights"]))
    return network


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file may hold, computed by ours."""
    results: dict[str, Tensor] = {}
    for name, entry in fixture.json["cases"].items():
        x, network = fixture.tensors[f"in.{name}.x"], build(fixture, entry).eval()
        with torch.no_grad():
            codes = network.get_codebook_indices(x)
            decoded, features = network.decode(codes)
            errors, commitment, out, _ = network(x)
            found = {"codes": codes, "encoder": network.encoder(x), "decode": decoded, "decode_last_feature": features}
            found |= {"eval.recon_loss_mean": errors.mean(), "eval.commitment": commitment, "eval.out": out}
        errors, commitment, out, _ = network.train()(x)
        (errors.mean() + COMMITMENT * commitment).backward()
        found |= {"train.recon_loss": errors.mean(), "train.commitment": commitment, "train.out": out}
        found |= {f"train.grad.{key}": weight.grad for key, weight in network.named_parameters()}
        found |= {"after_train.embed": network.quantizer.codebook(), "after_train.misses": network.quantizer.codebook_misses}
        results |= {f"{name}.{key}": value for key, value in found.items()}
    return results


@handles("sr/golden_dvae*", cases=lambda fixture: fixture.outputs)
def check(fixture: Fixture, case: str) -> None:
    results, expected = run(fixture), fixture.tensors[f"out.{case}"]
    assert case in results, f"no comparison for the reference output '{case}'"
    kind = "gradient" if ".grad." in case else "output" if expected.is_floating_point() else "exact"
    compare(results[case], expected, kind, case)


@handles("manifest_dlas_dvae*")
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, {"which_model_G": "dvae", **fixture.json["constructor"]})
