"""Switched convolutions: the product, the modules of three generations, the norm, the balance losses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from dlas.layers.switched import (
    NoisyRouter,
    Routed,
    SwitchedConv2d,
    SwitchNorm,
    balance_loss,
    rename_state_dict,
    route_top1,
    switch_balance,
    switched_conv2d,
)
from dlas.layers.switched.product import summed_conv2d
from parity.harness import Fixture, compare, handles


def cases(fixture: Fixture) -> list[str]:
    return fixture.outputs


def check_output(results: dict[str, Tensor], fixture: Fixture, case: str) -> None:
    expected = fixture.tensors[f"out.{case}"]
    assert case in results, f"no comparison for the reference output '{case}'"
    exact = not expected.is_floating_point() or case.endswith((".selector", "hard", "moe_G"))
    kind = "exact" if exact else "gradient" if ".grad_" in case else "output"
    compare(results[case], expected, kind, case)


@contextmanager
def drawn(function: str, numbers: Tensor) -> Iterator[None]:
    """The reference's random numbers instead of new ones."""

    def give(*shape: Any, **options: Any) -> Tensor:
        wanted = shape[0].shape if function.endswith("_like") else torch.Size(shape)
        assert wanted == numbers.shape, f"{function}: {tuple(wanted)} drawn, the reference drew {tuple(numbers.shape)}"
        return numbers

    with patch.object(torch, function, give):
        yield


@lru_cache(maxsize=1)
def run_core(fixture: Fixture) -> dict[str, Tensor]:
    """Shares and kernels: the mixture, the winner by the sum written out ("emulated"), the winner alone ("native")."""
    results = {}
    padding = fixture.json["shapes"]["kernel"] // 2
    for form, stride in {re.match(r"(.*)\.stride(\d+)\.", name).groups() for name in fixture.outputs}:  # type: ignore[union-attr]
        at = f"stride{stride}"
        names = {"x": "x", "weight": "weight", "bias": "bias", "logits": f"logits.{at}"}
        leaves = {key: fixture.tensors[f"in.{name}"].clone().requires_grad_() for key, name in names.items()}
        shares = torch.softmax(leaves["logits"], dim=1)
        if form != "soft":
            shares = route_top1(shares)
        arguments = (leaves["x"], leaves["weight"], shares, leaves["bias"])
        if form == "hard_emulated":
            y = summed_conv2d(*arguments, int(stride), padding)
        else:
            y = switched_conv2d(*arguments, stride=int(stride), padding=padding, hard=form == "hard_native")
        (y * fixture.tensors[f"in.g.{at}"]).sum().backward()
        results |= {f"{form}.{at}.y": y, f"{form}.{at}.selector": shares}
        results |= {f"{form}.{at}.grad_{key}": leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
    return results


@handles("golden_switched_conv_core*", cases=cases)
def check_core(fixture: Fixture, case: str) -> None:
    check_output(run_core(fixture), fixture, case)


def layer_of(constructor: dict[str, Any], weights: dict[str, Tensor]) -> SwitchedConv2d:
    """The layer for a reference's arguments; what these leave out is told by the weights."""
    weights = rename_state_dict(weights)
    out_channels, in_channels, breadth, kernel, _ = weights["weight"].shape
    options: dict[str, Any] = {"bias": "shared" if "bias" in weights else "none", "stride": constructor.get("stride", 1)}
    if "switch_breadth" in constructor:
        options |= {"hard": False, "padding": constructor.get("padding", 0)}
    elif "num_convs" in constructor:
        options |= {"hard": False, "padding": constructor["pads"], "bias": "each", "selector": "mapping"}
        options["temperature"] = constructor["initial_temperature"]
    else:
        options |= {"norm": "rescaled" if "hard_en" in constructor else "sum_to_one"}
        options |= {"dropout": constructor.get("dropout_rate", 0.0)}
    layer = SwitchedConv2d(
        in_channels, out_channels, kernel, breadth, selector_channels=constructor.get("coupler_dim_in"), **options
    )
    missing, unexpected = layer.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("accumulator" in name for name in missing)  # which the reference's constructor makes
    return layer


@lru_cache(maxsize=1)
def run_modules(fixture: Fixture) -> dict[str, Tensor]:
    results = {}
    inputs = {name.removeprefix("in."): tensor for name, tensor in fixture.tensors.items() if name.startswith("in.")}
    for name, case in fixture.json["cases"].items():
        layer = layer_of(case["constructor"], fixture.build_weights(case["weights"]))
        if name == "dropout":
            with drawn("rand", inputs["dropout_u"]):
                results["dropout_train"] = layer.train()(inputs["x"])
        elif name == "soft_paramlist":
            results[name] = layer(inputs["x_soft"])
            results[f"{name}.external_lowres_selector"] = layer(inputs["x_soft"], inputs["selector_feature"])
        else:
            results[f"{name}.eval"] = layer.eval()(inputs["x"])
            x = inputs["x"].clone().requires_grad_()
            y = results[f"{name}.train"] = layer.train()(x)
            (y * inputs[f"{name}.g"]).sum().backward()
            assert x.grad is not None and layer.gate.norm is not None
            results[f"{name}.grad_x"] = x.grad
            results |= {f"{name}.grad_{key.replace('.', '_')}": each.grad for key, each in layer.named_parameters()}  # type: ignore[misc]
            results[f"{name}.accumulator_row0"] = layer.gate.norm.accumulator[0]
    return results


@handles("golden_switched_conv_module*", cases=cases)
def check_modules(fixture: Fixture, case: str) -> None:
    check_output(run_modules(fixture), fixture, case)


@lru_cache(maxsize=1)
def run_norm(fixture: Fixture) -> dict[str, Tensor]:
    results = {}
    config = fixture.json["config"]
    for name, form in (("repo", "sum_to_one"), ("dlas", "rescaled")):
        norm = SwitchNorm(config["group_size"], config["accumulator_size"], form)  # type: ignore[arg-type]
        calls = sum(key.startswith("in.p") for key in fixture.tensors)
        results |= {f"{name}.train{call}": norm(fixture.tensors[f"in.p{call}"]) for call in range(calls)}
        results[f"{name}.eval"] = norm.eval()(fixture.tensors["in.p0"])
        results |= {f"{name}.accumulator": norm.accumulator, f"{name}.index": norm.accumulator_index}
        results[f"{name}.filled"] = norm.accumulator_filled
    return results


@handles("golden_switched_conv_switchnorm*", cases=cases)
def check_norm(fixture: Fixture, case: str) -> None:
    check_output(run_norm(fixture), fixture, case)


def with_values(fixture: Fixture) -> Iterable[str]:
    return [*fixture.outputs, *fixture.json["values"]]


@lru_cache(maxsize=1)
def run_balance(fixture: Fixture) -> tuple[Routed, Tensor, Tensor]:
    """The noisy router's choice, and the winner with its shares without noise."""
    logits = fixture.tensors["in.logits"]
    router = NoisyRouter(logits.shape[1], load="published")
    router.load_state_dict(fixture.build_weights(fixture.json["weights"]))
    with drawn("randn_like", fixture.tensors["in.noise"]):
        routed = router(logits)
    shares = SwitchNorm(logits.shape[1])(torch.softmax(logits, dim=1))
    return routed, shares, route_top1(shares)


@handles("golden_switched_conv_balancing*", cases=with_values)
def check_balance(fixture: Fixture, case: str) -> None:
    routed, shares, chosen = run_balance(fixture)
    if case in fixture.outputs:
        check_output({"moe_G": routed.chosen, "moe_load_loss": routed.load, "hard": chosen}, fixture, case)
        return
    if case.startswith("moe_loss"):
        load, importance = (float(number) for number in re.findall(r"weight ([\d.]+)", case))
        loss = balance_loss(routed, load, importance)
    else:
        assert case.startswith("switch_transformers_load_balancing_loss")
        loss = switch_balance(shares, chosen)
    compare(loss, torch.tensor(fixture.json["values"][case]), "float64", case)


@lru_cache(maxsize=1)
def run_2020(fixture: Fixture) -> dict[str, Tensor]:
    """The first generation; "bare" mixes given outputs of branches by given logits."""
    results = {}
    logits = fixture.tensors["in.attention"]
    groups = torch.stack([fixture.tensors[f"in.group{number}"] for number in range(logits.shape[1])], dim=1)

    def mixed(shares: Tensor) -> Tensor:
        return (groups * shares[:, :, None]).sum(dim=1)

    norm = SwitchNorm(logits.shape[1], window=2)
    for case in fixture.outputs:
        if found := re.fullmatch(r"bare\.temp(\d+)", case):
            results[case] = mixed(torch.softmax(logits / int(found[1]), dim=1))
        elif found := re.fullmatch(r"bare\.attnorm_call(\d+)", case):
            # The calls' logits and the memory's length are not in the file; they follow from its numbers.
            results[case] = mixed(norm(torch.softmax(logits * (1 + 0.3 * int(found[1])), dim=1)))
    layer = layer_of(fixture.json["constructor"], fixture.build_weights(fixture.json["weights"])).eval()
    results["switchedconv2d"] = layer(fixture.tensors["in.xb"])
    results["switchedconv2d.attention_bhwn"] = layer.shares(fixture.tensors["in.xb"]).permute(0, 2, 3, 1)
    return results


@handles("golden_switched_conv_2020*", cases=with_values)
def check_2020(fixture: Fixture, case: str) -> None:
    if case in fixture.outputs:
        check_output(run_2020(fixture), fixture, case)
        return
    shares = run_2020(fixture)["switchedconv2d.attention_bhwn"]
    for count, expected in enumerate(fixture.json["values"][case], 1):
        compare(shares.topk(count, dim=-1).values.sum(dim=-1).mean(), torch.tensor(expected), "output", case)
