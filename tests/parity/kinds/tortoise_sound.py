"""TorToiSe's vocoder, its classifier of clips, its random latents, and the spectrograms it reads."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.archs.speech.univnet import location_variable_convolution
from dlas.layers.mel import MelSpectrogram, mel_filters, normalise_mel, resample
from dlas.layers.weight_norm import fold_weight_norm
from parity.harness import Fixture, compare, handles
from parity.kinds.tortoise import build, cases, check_norms, check_output, gradient_norms, stored
from parity.manifests import check_layout, published_layout

MEL_NORMS = "mel_norms.pth"


@lru_cache(maxsize=1)
def run_vocoder(fixture: Fixture) -> dict[str, Any]:
    given, network = stored(fixture, "in"), build(fixture, "univnet", fixture.json["config"])
    found: dict[str, Any] = {}
    first = network.res_stack[0]
    watched = {"conv_pre": network.conv_pre, "block0_convt_pre": first.convt_pre, "block0_out": first}
    handles_ = [
        module.register_forward_hook(lambda m, i, out, name=name: found.update({name: out})) for name, module in watched.items()
    ]
    sound = network(given["mel"], given["z"])
    for handle in handles_:
        handle.remove()
    kernels, found["block0_bias"] = first.kernel_predictor(given["mel"])
    found["block0_kernels"] = torch.stack(kernels, dim=1).permute(0, 1, 4, 3, 5, 2)
    found |= {"waveform": sound, "mean_square_of_waveform": sound.square().mean()}
    found["mean_square_of_waveform"].backward()
    found["grad_l2_norms__mean_square"] = gradient_norms(network)
    fold_weight_norm(network)
    found["waveform_inference"] = network.inference(given["mel"], given["z_inference"])
    compare(network(given["mel"], given["z"]), sound.detach(), "output", "with weight norm folded")
    expected = {name: tuple(shape) for name, shape in fixture.json["state_dict_after_weight_norm_removal"].items()}
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == expected
    network.fold()
    compare(network(given["mel"], given["z"]), sound.detach(), "output", "laid out for inference")
    return found


@lru_cache(maxsize=1)
def run_classifier(fixture: Fixture) -> dict[str, Any]:
    config = {key: value for key, value in fixture.json["config"].items() if key != "distribute_zero_label"}
    audio, network = fixture.tensors["in.audio"], build(fixture, "mini_audio_encoder_classifier", config)
    loss = network(audio, torch.tensor([1, 0]))
    return {"enc": network.enc(audio), "logits": network(audio), "loss_labels_1_0": loss}


@lru_cache(maxsize=1)
def run_random_latents(fixture: Fixture) -> dict[str, Any]:
    noise, network = fixture.tensors["in.r"], build(fixture, "random_latent_converter", fixture.json["config"])
    return {"latent": network(noise), "after_layer0": network.layers[0](noise)}


def mel_norms(fixture: Fixture) -> Tensor:
    return torch.load(fixture.path.parent / "data" / MEL_NORMS, weights_only=True)


@lru_cache(maxsize=1)
def run_mel(fixture: Fixture) -> dict[str, Any]:
    slow, fast = fixture.tensors["in.audio_22050"], fixture.tensors["in.audio_24000"]
    power = MelSpectrogram(power=2, scale="htk")(slow)
    magnitude = MelSpectrogram(sampling_rate=24000, n_mel_channels=100, mel_fmax=12000)(fast.clamp(-1, 1))
    return {
        "torch_mel_80_unnormed": power,
        "torch_mel_80_normed": power / mel_norms(fixture)[:, None],
        "tacotron_mel_100_24k": magnitude,
        "tacotron_mel_100_24k_normalized": normalise_mel(magnitude),
        "tacotron_mel_80_22k_default": MelSpectrogram()(slow.clamp(-1, 1)),
        "resampled_24000": resample(slow, 22050, 24000),
        "mel_basis_100_24k": mel_filters(24000, 1024, 100, 0, 12000, "slaney"),
        "torch_mel_fb_80_22k_slaney_norm_htk_scale": mel_filters(22050, 1024, 80, 0, 8000, "htk").T,
    }


RUNS = {"vocoder": run_vocoder, "classifier": run_classifier, "rlg": run_random_latents, "mel": run_mel}


@handles("golden_vocoder*", "golden_classifier*", "golden_rlg*", "golden_mel_frontends*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    found = RUNS[fixture.stem.split("_")[1]](fixture)
    if case.startswith("grad_l2_norms"):
        check_norms(found[case], fixture.json[case])
    else:
        check_output(found, fixture, case)


@handles("manifest_vocoder*", "manifest_classifier*", "manifest_rlg*")
def check_manifest(fixture: Fixture, case: str) -> None:
    names = {"vocoder": "univnet", "classifier": "mini_audio_encoder_classifier"}
    name = names.get(fixture.json["network"], "random_latent_converter")
    options = {key: value for key, value in fixture.json["hyperparameters"].items() if key != "distribute_zero_label"}
    assert published_layout(fixture)
    check_layout(fixture, {"which_model": name, **options})


def convolved_one_by_one(x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    """What a location-variable convolution is, frame by frame."""
    frames, reach = kernels.shape[-1], kernels.shape[3] // 2
    hop = x.shape[-1] // frames
    padded = F.pad(x, (reach, reach))
    rows = []
    for sample, kernel, bias in zip(padded, kernels, biases, strict=True):
        pieces = [
            F.conv1d(sample[None, :, t * hop : (t + 1) * hop + 2 * reach], kernel[..., t].transpose(0, 1), bias[:, t])
            for t in range(frames)
        ]
        rows.append(torch.cat(pieces, dim=-1))
    return torch.cat(rows)


@handles("golden_vocoder*", cases=lambda fixture: ["location_variable_convolution"])
def check_location_variable_convolution(fixture: Fixture, case: str) -> None:
    """With kernels of the reference; the two ways to compute it must agree."""
    kernels, biases = fixture.tensors["out.block0_kernels"][:, 0], fixture.tensors["out.block0_bias"][:, 0]
    x = fixture.tensors["out.block0_convt_pre"]
    found = location_variable_convolution(x, kernels.permute(0, 4, 2, 1, 3), biases)
    compare(found, convolved_one_by_one(x, kernels, biases), "output", case)
