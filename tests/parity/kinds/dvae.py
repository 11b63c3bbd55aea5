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
            errors, commitment, out, *_ = network(x)
            found = {"codes": codes, "encoder": network.encoder(x), "decode": decoded, "decode_last_feature": features}
            found |= {"eval.recon_loss_mean": errors.mean(), "eval.commitment": commitment, "eval.out": out}
        errors, commitment, out, *_ = network.train()(x)
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


# ------------------------------------------------------------------------------------------------------------ TorToiSe's

UNREAD = ("straight_through", "record_codes")
"""Arguments of the reference on which none of its numbers depends."""


@lru_cache(maxsize=1)
def run_published(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file of TorToiSe's network may hold, computed by ours."""
    options = {key: value for key, value in fixture.json["config"].items() if key not in UNREAD}
    network, x = create_network({"which_model": "lucidrains_dvae", **options}), fixture.tensors["in.mel"]
    weights = {key.removeprefix("w."): value for key, value in fixture.tensors.items() if key.startswith("w.")}
    network.load_state_dict(weights, strict=True)
    with torch.no_grad():
        codes = network.eval().get_codebook_indices(x)
        decoded, features = network.decode(codes)
        errors, commitment, out, *_ = network(x)
    found = {"encoder_out": network.encoder(x), "codes": codes, "decoded": decoded, "decoded_penultimate": features}
    found |= {"eval_recon_loss_map": errors, "eval_commitment_loss": commitment, "eval_out": out}
    errors, commitment, out, *_ = network.train()(x)
    total = errors.mean() + COMMITMENT * commitment
    total.backward()
    found |= {"train_recon_loss_mean": errors.mean(), "train_commitment_loss": commitment, "train_out": out}
    found["train_total_recon_plus_0p25_commit"] = total
    found |= {f"grad.{key}": weight.grad for key, weight in network.named_parameters()}
    for times in ("one_train_step", "two_train_steps"):
        found |= {f"codebook_after_{times}.{key}": value.clone() for key, value in network.codebook.state_dict().items()}
        network(x)
    return found


def published_cases(fixture: Fixture) -> list[str]:
    gradients = [name for name in fixture.tensors if name.startswith("grad.")]
    return [*fixture.outputs, *gradients, *(name for name in fixture.json if name.startswith("grad_l2_norms"))]


@handles("tortoise/golden_dvae*", cases=published_cases)
def check_published(fixture: Fixture, case: str) -> None:
    results = run_published(fixture)
    if case.startswith("grad_l2_norms"):
        norms = {key: results[f"grad.{key}"].norm() for key in fixture.json[case]}
        for key, expected in fixture.json[case].items():
            compare(norms[key], torch.tensor(expected), "gradient", key)
        return
    expected = fixture.tensors[case if case.startswith("grad.") else f"out.{case}"]
    assert case in results, f"no comparison for the reference output '{case}'"
    kind = "gradient" if case.startswith("grad.") else "output" if expected.is_floating_point() else "exact"
    compare(results[case], expected, kind, case)


@handles("tortoise/manifest_dvae*")
def check_published_manifest(fixture: Fixture, case: str) -> None:
    options = {key: value for key, value in fixture.json["hyperparameters"].items() if key not in UNREAD}
    check_layout(fixture, {"which_model": "lucidrains_dvae", **options})
