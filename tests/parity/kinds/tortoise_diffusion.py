"""TorToiSe's diffusion decoder: conditions, forwards, losses, steps and chains with and without guidance."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from dlas.archs.speech.diffusion_tts import DiffusionTTS
from dlas.diffusion import NetworkDenoiser, create_process
from dlas.diffusion.guidance import Autoguidance, Guidance, clip
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.respacing import Respaced, spaced_timesteps
from dlas.diffusion.samplers.ancestral import Ancestral
from dlas.diffusion.samplers.ddim import DDIM
from dlas.diffusion.training import Objective
from dlas.diffusion.variance import Chain
from dlas.layers.mel import denormalise_mel
from dlas.layers.time_embedding import timestep_embedding
from parity.harness import Fixture, compare, handles
from parity.kinds.diffusion_training import tables
from parity.kinds.tortoise import build, cases, check_norms, check_output, gradient_norms, stored
from parity.manifests import check_layout

IGNORED = ("use_fp16",)


def options(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in IGNORED}


@lru_cache(maxsize=1)
def network_of(fixture: Fixture) -> DiffusionTTS:
    return build(fixture, "diffusion_tts_flat", options(fixture.json["config"]))


def whole_process(fixture: Fixture) -> Timesteps:
    sampling = fixture.json["sampling"]
    process = create_process({"type": "vp", "schedule": sampling["beta_schedule"], "steps": sampling["trained_steps"]})
    assert isinstance(process, Timesteps)
    return process


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Any]:
    given, network = stored(fixture, "in"), network_of(fixture)
    x, t, latents, codes, clips = (given[name] for name in ("x", "t", "latents", "codes", "cond_mels"))
    frames, found = x.shape[-1], {}
    with torch.no_grad():
        voice = network.conditioning(clips)
        found["cond_latent"], found["cond_latent_single3d"] = voice, network.conditioning(clips[:, 0])
        found["timestep_embedding"] = timestep_embedding(t, network.channels)
        found["time_embed"] = network.embed_time(t)
        independent = network.timestep_independent(latents, voice, frames)
        found["timestep_independent_latents"] = independent
        found["timestep_independent_codes"] = network.timestep_independent(codes, voice, frames)
        found["conditioning_timestep_integrated"] = network.integrate_time(independent, found["time_embed"])
        for name, positions in bias_cases(fixture):
            bias = network.latent_conditioner[1].relative_pos_embeddings(positions)
            found[name] = bias
        found["forward_latents"] = network(x, t, latents, voice)
        found["forward_codes"] = network(x, t, codes, voice)
        found["forward_precomputed"] = network(x, t, precomputed_aligned_embeddings=independent)
        found["forward_conditioning_free"] = network(x, t, conditioning_free=True)
        _, found["mel_pred"] = network(x, t, latents, voice, return_code_pred=True)

    process = whole_process(fixture)
    for count in (30, 80, 200, 400, fixture.json["sampling"]["steps"]):
        found[f"timestep_map_{count}"] = torch.tensor(spaced_timesteps(process.steps, [count]))
    index = given["full4000_index"]
    found |= {f"full4000_{name}": value[index] for name, value in tables(Chain(process), process.alpha_bars).items()}
    spaced = Respaced(process, spaced_timesteps(process.steps, [30]))
    found |= {f"spaced30_{name}": value for name, value in tables(Chain(spaced), spaced.alpha_bars).items()}
    return found | trained(fixture, process)


def bias_cases(fixture: Fixture) -> list[tuple[str, int]]:
    pattern = r"relative_position_bias_len(\d+)_latent_conditioner_block1"
    return [(name, int(told[1])) for name in fixture.outputs if (told := re.fullmatch(pattern, name))]


def trained(fixture: Fixture, process: Timesteps) -> dict[str, Any]:
    """Losses, with everything random off; then what dropping conditions and layers does."""
    given, network = stored(fixture, "in"), network_of(fixture)
    objective = Objective(process, "eps", "learned_range", "mse")
    x0, noise, latents, clips = (given[name] for name in ("x_start", "noise", "latents", "cond_mels"))
    found: dict[str, Any] = {}
    network.train()
    network.zero_grad()
    for name, times in (("", given["t_train"]), ("__t_with_zero", given["t_train_with_zero"])):
        question = objective.ask(x0, noise, times)
        output, mel = network(question.x, times, latents, clips, return_code_pred=True)
        terms = objective.terms(question, *output.chunk(2, dim=1))
        assert terms.bound is not None
        found[f"train_mse_per_item{name}"] = terms.error
        found[f"train_vb_per_item{name}"] = terms.bound.flatten(1).mean(1)
        if not name:
            surrogate = (mel - x0).square().mean()
            found |= {"q_sample": question.x, "train_loss_per_item": terms.loss, "train_x_start_predicted": terms.x0}
            found["train_mel_surrogate_l2_mean"] = surrogate
            total = terms.loss.mean() + surrogate
            found["train_total_mse_vb_surrogate_weights_1_1_1"] = total
            total.backward()
            found |= {f"grad.{key}": weight.grad for key, weight in network.named_parameters()}
            found["grad_l2_norms__train_total"] = gradient_norms(network)
            without = {key for key, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
            assert without == set(fixture.json["params_without_grad__train_total_latents"])
    network.eval()
    with torch.no_grad():
        x, t = given["x"], given["t"]
        plain, chosen = network.without_condition, torch.tensor([False, True]).reshape(-1, 1, 1)
        network.train()
        network.without_condition = lambda embedded, _: plain(embedded, chosen)
        found["train_forward__item1_unconditioned"], mel = network(x, t, latents, clips, return_code_pred=True)
        del network.without_condition
        found["train_mel_pred__item1_unconditioned"] = mel * ~chosen
        network.eval()
        layers = network.layers
        network.layers = torch.nn.ModuleList(layer for index, layer in enumerate(layers) if index != 2)
        found["train_forward__layer_index2_dropped"] = network(x, t, latents, clips)
        network.layers = layers
    return found


SAMPLED = re.compile(r"(p_mean_variance|p_sample_all_steps|ddim_final|denormalized_p_sample)_.*")


def denoiser(fixture: Fixture, process: Timesteps, with_guidance: bool, clipped: bool) -> NetworkDenoiser | Autoguidance:
    given, network = stored(fixture, "in"), network_of(fixture)
    frames = given["sample_noise_start"].shape[-1]
    with torch.no_grad():
        condition = network.timestep_independent(given["latents"][:1], network.conditioning(given["cond_mels"])[:1], frames)
    sampling = fixture.json["sampling"]
    k = sampling["cond_free_k"] if with_guidance else 0.0
    return guided(network, process, condition, k, ramp=sampling["ramp_conditioning_free"], clipped=clipped)


def guided(
    network: DiffusionTTS, process: Timesteps, condition: Tensor, k: float, *, ramp: bool = True, clipped: bool = True
) -> NetworkDenoiser | Autoguidance:
    """Predicts with the condition, moved away from what is predicted without it."""
    make = partial(NetworkDenoiser, process=process, learned_variance=True)
    good = make(network, conditions={"precomputed_aligned_embeddings": condition}, transform=clip() if clipped else None)
    if k == 0:
        return good
    return Autoguidance(good, make(network, conditions={"conditioning_free": True}), Guidance(1 + k, ramp=ramp))


@torch.no_grad()
def sampled(fixture: Fixture, case: str) -> Tensor:
    given, whole = stored(fixture, "in"), whole_process(fixture)
    steps = fixture.json["sampling"]["steps"]
    process = Respaced(whole, spaced_timesteps(whole.steps, [steps]))
    grid = process.grid([float(t) for t in reversed(range(steps))])
    denoise = denoiser(fixture, process, "no_cond_free" not in case, "noclip" not in case)
    noise = lambda k: given["sample_step_noise"][k]  # noqa: E731
    start = given["sample_noise_start"]
    if case.startswith("ddim"):
        return DDIM().run(denoise, start, grid, noise)
    if case.startswith("p_mean_variance"):
        return one_step(denoise, process, start, case)
    stages = [stage.x for stage in Ancestral(variance="learned_range").walk(denoise, start, grid, noise)]
    return denormalise_mel(stages[-1]) if case.startswith("denormalized") else torch.stack(stages)


def one_step(denoise: Any, process: Timesteps, x: Tensor, case: str) -> Tensor:
    """Of the first step, the last, or where the name does not tell, the middle."""
    index = 0 if "spacedindex0" in case else process.steps - 1 if "spacedindexlast" in case else process.steps // 2
    times = torch.tensor([index])
    seen = denoise(x, float(index))
    link = Chain(process).at(times, x)
    log_variance = link.log_variance("learned_range", seen.variance)
    fields = {"mean": link.posterior.mean(seen.x0, x), "log_variance": log_variance, "variance": log_variance.exp()}
    fields["pred_xstart"] = seen.x0
    wanted = next(name for name in ("log_variance", "variance", "mean", "pred_xstart") if case.endswith(f"_{name}"))
    return fields[wanted]


@handles("golden_diffusion_decoder*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    if SAMPLED.fullmatch(case):
        check_output({case: sampled(fixture, case)}, fixture, case)
    elif case.startswith("grad_l2_norms"):
        check_norms(run(fixture)[case], fixture.json[case])
    elif fixture.tensors.get(f"out.{case}", torch.empty(0)).dtype == torch.float64:
        compare(run(fixture)[case], fixture.tensors[f"out.{case}"], "float64", case)
    else:
        check_output(run(fixture), fixture, case)


@handles("manifest_diffusion_decoder*")
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, {"which_model": "diffusion_tts_flat", **options(fixture.json["hyperparameters"])})
