"""SRFlow: densities, latents, inverses, gradients, data-dependent initialisation, and the layouts of published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlas.archs import create_network
from dlas.archs.srflow import SRFlow
from parity.harness import Fixture, compare, handles
from parity.manifests import check_layout


def network_options(fixture: Fixture) -> dict[str, Any]:
    """Options of `create_network` for the reference's constructor arguments and option file, or a manifest's summary."""
    settings = fixture.json.get("opt", {})
    flow = settings["network_G"]["flow"] if settings else published_flow(fixture.json["flow"])
    quant = settings.get("datasets", {}).get("train", {}).get("quant", 255)
    return {"which_model": "srflow", **fixture.json["constructor"], "flow": flow, "quant": quant, "train_RRDB": True}


def published_flow(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's summary in the words of SRFlow's option files."""
    return {
        "K": summary["K"],
        "L": summary["L"],
        "additionalFlowNoAffine": summary["additionalFlowNoAffine"],
        "split": {"enable": summary["split_enable"]},
        "stackRRDB": {"blocks": summary["stackRRDB_blocks"], "concat": summary["concat"]},
        "fea_up0": summary["fea_up0"],
        "CondAffineSeparatedAndCond": {"hidden_channels": summary["affine_hidden_channels"], "eps": summary["affine_eps"]},
    }


def build(fixture: Fixture, *, normalised: bool = True) -> SRFlow:
    """The network of a golden file; not `normalised`: with every ActNorm as before its first batch."""
    network = create_network(network_options(fixture))
    assert isinstance(network, SRFlow)
    weights = fixture.build_weights(fixture.json["weights"])
    if not normalised:
        weights = {key: torch.zeros_like(value) if ".actnorm." in key else value for key, value in weights.items()}
    network.load_state_dict(network.rename_state_dict(weights))
    return network.eval()


def encoded(name: str, result: tuple[tuple[Tensor, ...], Tensor, Tensor]) -> dict[str, Tensor]:
    """An encoder's results under the names of the fixtures."""
    latents, nll, log_density = result
    named = {f"{name}.z": latents[-1], f"{name}.nll": nll, f"{name}.logdet": log_density}
    return named | {f"{name}.epses.{place}": latent for place, latent in enumerate(latents)}


def decoded(name: str, network: SRFlow, latents: tuple[Tensor, ...], low_res: Tensor) -> dict[str, Tensor]:
    """A picture, and what its density is off: the reference counts it backwards from 0."""
    picture = network.decode(latents, low_res)
    again, _, log_density = network.encode(picture, low_res)
    for one, two in zip(again, latents, strict=True):
        compare(one, two, "inverse", f"{name}: encoded again")
    return {name: picture, f"{name}.logdet": -log_density}


def condition_size(power: int) -> int:
    """The reference counts 4, 2, 1 from the fine side on, then 0, -1."""
    return 2**power if power >= 0 else power + 1


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file of SRFlow may hold, computed by ours."""
    network, given = build(fixture), fixture.tensors
    low_res, high_res = given["in.lr"], given["in.hr"]
    conditions = [each.whole() for each in network.RRDB.conditions(low_res, network.levels)]
    finest = network.RRDB.doublings - 1
    results = {f"cond.fea_up{condition_size(finest - place)}": each for place, each in enumerate(conditions)}
    results["rrdb_out"] = network.RRDB.picture(low_res)
    results |= encoded("enc", network(high_res, low_res))
    results["enc.nll"].mean().backward()
    gradients = {f"grad.{name}": weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    results |= gradients
    with torch.no_grad():
        if "in.dequant_u" in given:
            results |= encoded("enc_noise", network.encode(high_res, low_res, given["in.dequant_u"]))
        latents = network.encode(high_res, low_res)[0]
        results |= decoded("dec.from_epses", network, latents, low_res)
        results |= decoded("dec.heat0", network, network.draw(low_res, 0.0), low_res)
        fixed = tuple(given[f"in.dec.epses.{place}"] for place in range(len(latents)) if f"in.dec.epses.{place}" in given)
        if fixed:
            results |= decoded("dec.fixed_eps", network, fixed, low_res)
    fresh = build(fixture, normalised=False).train()
    results |= encoded("ddi", fresh.encode(high_res, low_res))
    results |= {f"ddi.{name}": weight for name, weight in fresh.named_parameters()}
    return results


@handles("golden_srflow_*", cases=lambda fixture: [*fixture.outputs, "inverse"])
def check(fixture: Fixture, case: str) -> None:
    results = run(fixture)
    if case == "inverse":
        compare(results["dec.from_epses"], fixture.tensors["in.hr"], "inverse", case)
        return
    known = SRFlow.rename_state_dict({case.partition(".")[2]: torch.empty(0)})
    name = f"{case.partition('.')[0]}.{next(iter(known))}" if case not in results else case
    assert name in results, f"no comparison for the reference output '{case}'"
    kind = "gradient" if case.startswith("grad") else "inverse" if case.startswith("dec") else "output"
    if case.endswith(".logdet"):
        kind = "output"
    compare(results[name], fixture.tensors[f"out.{case}"], kind, case)


@handles("manifest_SRFlow_*")
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, network_options(fixture))
