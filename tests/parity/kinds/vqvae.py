"""Two-level vector-quantised autoencoders: codes, reconstructions, a step of training with the codebooks it leaves, layout."""

from __future__ import annotations

import re
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs import create_network
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout

COMMITMENT = 0.25
"""Weight that the reference's `train.loss` gives to the commitment."""


def build(fixture: Fixture) -> nn.Module:
    """The network of a golden file; `conv` among the reference's arguments names its one-dimensional layers."""
    options = dict(fixture.json["constructor"])
    name = "vqvae_audio" if "Conv1d" in options.pop("conv", "") else "vqvae"
    network = create_network({"which_model": name, **options})
    network.load_state_dict(fixture.build_weights(fixture.json["weights"]))
    return network


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file may hold, computed by ours."""
    x, network = fixture.tensors["in.x"], build(fixture).eval()
    with torch.no_grad():
        top, bottom = network.encode(x)
        decoded, diff, *_ = network(x)
        results = {
            "quant_t": top.vectors,
            "quant_b": bottom.vectors,
            "id_t": top.indices,
            "id_b": bottom.indices,
            "dec": decoded,
            "diff": diff,
            "decode_from_ids": network.from_indices(top.indices, bottom.indices),
        }
        if hasattr(network, "sequence"):
            codes = network.sequence(x)
            results |= {"joined_ids": codes, "decode_code_joined": network.from_sequence(codes)}
    decoded, diff, *_ = network.train()(x)
    loss = F.mse_loss(decoded, x) + COMMITMENT * diff.mean()
    loss.backward()
    results |= {"train.dec": decoded, "train.diff": diff, "train.loss": loss}
    results |= {f"train.grad.{name}": weight.grad for name, weight in network.named_parameters()}
    return results | {f"after_train.{name}": value for name, value in network.state_dict().items()}


@handles("golden_vqvae*", cases=lambda fixture: fixture.outputs)
def check(fixture: Fixture, case: str) -> None:
    results, expected = run(fixture), fixture.tensors[f"out.{case}"]
    assert case in results, f"no comparison for the reference output '{case}'"
    kind = "gradient" if ".grad." in case else "output" if expected.is_floating_point() else "exact"
    compare(results[case], expected, kind, case)


SWITCHED = {"hardswitched": "vqvae_norm_hard_switched_conv_lambda", "vqvae3_hard": "vqvae3_hard_switch"}
"""Cases of a golden file, and the networks' registered names."""


@lru_cache(maxsize=1)
def run_switched(fixture: Fixture) -> dict[str, Tensor]:
    x, results = fixture.tensors["in.x"], {}
    for name, case in fixture.json["cases"].items():
        network = create_network({"which_model": SWITCHED[name], **case["constructor"]}).eval()
        _, unexpected = network.load_state_dict(fixture.build_weights(case["weights"]), strict=False)
        assert not unexpected
        with torch.no_grad():
            top, bottom = network.encode(x)
            decoded, diff, *_ = network(x)
        found = {"id_t": top.indices, "id_b": bottom.indices, "diff": diff, "dec": decoded}
        results |= {f"{name}.{key}": value for key, value in found.items()}
    return results


@handles("golden_switched_vqvae*", cases=lambda fixture: fixture.outputs)
def check_switched(fixture: Fixture, case: str) -> None:
    results, expected = run_switched(fixture), fixture.tensors[f"out.{case}"]
    assert case in results, f"no comparison for the reference output '{case}'"
    compare(results[case], expected, "output" if expected.is_floating_point() else "exact", case)


@handles("manifest_dlas_vqvae*")
def check_manifest(fixture: Fixture, case: str) -> None:
    """The reference's arguments are given by name, or as the text of a call, or left at its defaults."""
    given = fixture.json["constructor"]
    if isinstance(given, str):
        given = {name: int(value) for name, value in re.findall(r"\b(\w+)'?\s*[=:]\s*(\d+)(?![\d.])", given)}
    check_layout(fixture, {"which_model_G": fixture.json.get("registered_as", "vqvae"), **given})
