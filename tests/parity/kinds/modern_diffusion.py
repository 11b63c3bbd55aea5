"""EDM2's U-Net, DiT, and latent diffusion's U-Net and autoencoder: outputs and gradients of the original repositories."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from dlas.archs import create_network
from parity.harness import Fixture, compare, handles

INPUTS = {"noise_labels": "timesteps", "t": "timesteps", "class_labels": "y"}
"""Our names of the references' arguments, where they are others."""

WITHOUT_MEANING_HERE = ("use_checkpoint", "legacy", "use_spatial_transformer", "learn_sigma", "class_dropout_prob")
"""Arguments of the references that change no number, or say what other options say here."""


def factors(size: int, sizes: list[int]) -> list[int]:
    """By which pictures are smaller at levels that the references name by their size."""
    return [size // each for each in sizes]


def renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {names.get(key, key): value for key, value in options.items()}
    return {key: value for key, value in found.items() if key not in WITHOUT_MEANING_HERE}


def network_options(fixture: Fixture) -> dict[str, Any]:
    """Options of `create_network` for a reference's constructor arguments."""
    given = dict(fixture.json["constructor"])
    if "edm2" in fixture.stem:
        names = {"img_resolution": "image_size", "img_channels": "in_channels", "label_dim": "num_classes"}
        names |= {"attn_resolutions": "attention_resolutions"}
        given["attn_resolutions"] = factors(given["img_resolution"], given["attn_resolutions"])
        given["label_dim"] = given["label_dim"] or None
        return {"which_model": "edm2_unet", "out_channels": given["img_channels"], **renamed(given, names)}
    if "dit" in fixture.stem:
        channels = given["in_channels"] * (2 if given["learn_sigma"] else 1)
        null = given.get("class_dropout_prob", 0.1) > 0
        return {
            "which_model": "dit",
            "out_channels": channels,
            "null_class": null,
            **renamed(given, {"input_size": "image_size"}),
        }
    if "autoencoder" in fixture.stem:
        config = dict(given.pop("ddconfig"))
        config["attn_resolutions"] = factors(config.pop("resolution"), config["attn_resolutions"])
        names = {"out_ch": "out_channels", "ch": "channels", "ch_mult": "channel_mult"}
        names |= {"attn_resolutions": "attention_resolutions"}
        which = "autoencoder_kl" if config.pop("double_z") else "autoencoder_vq"
        return {"which_model": which, **given, **renamed(config, names)}
    return {"which_model": "cross_attention_unet", **renamed(given, {"context_dim": "context_channels"})}


def build(fixture: Fixture) -> nn.Module:
    """The network of a golden file, with its weights."""
    network = create_network(network_options(fixture))
    missing, unexpected = network.load_state_dict(fixture.build_weights(fixture.json["weights"]), strict=False)
    kept = {key for key, entry in fixture.json["weights"].items() if entry["rule"].startswith("buffer: keep")}
    assert (set(missing), unexpected) == (kept, [])
    return network.eval()


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Tensor]:
    """Everything that a golden file may hold, computed by ours."""
    network = build(fixture)
    inputs = {name.removeprefix("in."): tensor for name, tensor in fixture.tensors.items() if name.startswith("in.")}
    direction = inputs.pop("g", None)
    inputs = {INPUTS.get(name, name): tensor for name, tensor in inputs.items()}
    if inputs.get("y") is not None and inputs["y"].dim() == 2:  # one hot
        inputs["y"] = inputs["y"].argmax(1)
    inputs["x"] = inputs["x"].clone().requires_grad_()
    result = network(**inputs)
    results = dict(zip(("y", "mean", "log_variance"), result if isinstance(result, tuple) else [result], strict=False))
    results |= dict(network.named_buffers())
    if direction is not None:
        (results["y"] * direction).sum().backward()
        assert inputs["x"].grad is not None
        results["grad_x"] = inputs["x"].grad
        results |= {f"grad.{name}": weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    return results


def cases(fixture: Fixture) -> list[str]:
    return fixture.outputs


@handles("golden_edm2_unet*", "golden_dit_*", "golden_ldm_*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    results = run(fixture)
    assert case in results, f"no comparison for the reference output '{case}'"
    compare(results[case], fixture.tensors[f"out.{case}"], "gradient" if case.startswith("grad") else "output", case)
