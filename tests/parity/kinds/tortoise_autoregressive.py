"""TorToiSe's autoregressive model: losses, features, cached decoding, and the filters of sampling."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlas.archs.speech.unified_voice import UnifiedVoice
from dlas.layers.token_sampling import TokenSampling, keep_likely, keep_typical, penalise_repetition
from parity.harness import Fixture, handles
from parity.kinds.tortoise import build, cases, check_norms, check_output, gradient_norms, stored
from parity.manifests import check_layout

GREEDY = {"rp1": 1.0, "rp2": 2.0}


def options(config: dict[str, Any]) -> dict[str, Any]:
    """Ours for the reference's; spectrograms as inputs are not built."""
    assert config["use_mel_codes_as_input"]
    return {key: value for key, value in config.items() if key != "use_mel_codes_as_input"}


def full(kept: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
    """Logits in the order of tokens, -inf where none was kept."""
    return torch.full_like(like, -torch.inf).scatter(-1, kept[1], kept[0])


@lru_cache(maxsize=1)
def network_of(fixture: Fixture) -> UnifiedVoice:
    return build(fixture, "unified_voice2", options(fixture.json["config"]), dropout=0)


@lru_cache(maxsize=1)
def run(fixture: Fixture) -> dict[str, Any]:
    given, network = stored(fixture, "in"), network_of(fixture)
    clips, text, codes = given["cond_mels"], given["text"], given["mel_codes"]
    lengths = (given["text_lengths"], given["wav_lengths"])
    batch = (text, lengths[0], codes, lengths[1])
    found: dict[str, Any] = {}
    voice = network.conditioning(clips)
    found["cond_latent"] = voice
    found["cond_latent_single3d"] = network.conditioning(clips[:, 0])
    found["cond_per_clip"] = network._each_clip(clips)
    encoder = network.conditioning_encoder
    found["conditioning_encoder_full_sequence_clip0"] = encoder.attn(encoder.init(clips[:, 0]))

    states: list[Tensor] = []
    handle = network.gpt.register_forward_hook(lambda module, inputs, output: states.append(output))
    text_features: list[Tensor] = []
    head = network.text_head.register_forward_hook(lambda module, inputs, output: text_features.append(output.mT))
    text_loss, mel_loss, logits = network(voice, *batch)
    handle.remove()
    head.remove()
    total = 0.01 * text_loss + mel_loss
    found |= {"loss_text": text_loss, "loss_mel": mel_loss, "mel_logits": logits, "gpt_last_hidden_state": states[0]}
    found |= {"text_logits": text_features[0], "train_total_loss_0p01text_1mel": total}
    total.backward()
    found |= {f"grad.{name}": weight.grad for name, weight in network.named_parameters()}
    found["grad_l2_norms__train_total"] = gradient_norms(network)

    with torch.no_grad():
        found["loss_text__mel_first"], found["loss_mel__mel_first"], _ = network(voice, *batch, text_first=False)
        found["loss_text__no_clip"], found["loss_mel__no_clip"], _ = network(voice, *batch, clip_inputs=False)
        found["latent__clip"] = network(voice, *batch, return_latent=True)
        whole = (text, torch.tensor([text.shape[1]]), codes, torch.tensor([codes.shape[1] * network.compression]))
        found["latent__api_call"] = network(voice, *whole, return_latent=True, clip_inputs=False)
        for name, average in (("conds_avg", True), ("conds_per_clip", False)):
            network.average_conditioning = average
            text_loss, mel_loss, _ = network(clips, *batch)
            found |= {f"dlas_loss_text__{name}": text_loss, f"dlas_loss_mel__{name}": mel_loss}
            found[f"dlas_text_only_loss__{name}"] = network.text_loss(clips, text, lengths[0])
            found[f"dlas_speech_only_loss__{name}"] = network.speech_loss(clips, codes, lengths[1])
        network.average_conditioning = True

    raw, seen = given["filter_logits"], torch.zeros_like(given["filter_logits"], dtype=torch.bool)
    seen.scatter_(1, given["filter_history"], True)
    both = TokenSampling(repetition_penalty=2.0, temperature=0.8, top_k=50, top_p=0.8)
    after = full(both.candidates(raw, seen), raw)
    found["after_repetition_penalty_2"] = penalise_repetition(raw, seen, 2.0)
    found |= {"after_rp2_temp0p8_topk50_topp0p8": after, "probs_after_all": after.softmax(-1)}
    found["after_typical_mass0p9_of_raw"] = keep_typical(raw, 0.9)
    found["after_topp0p8_of_raw"] = full(keep_likely(raw, None, 0.8), raw)
    return found


def greedy(fixture: Fixture, case: str) -> Tensor:
    """Cases are named ``greedy_codes__kv0_rp1`` and ``greedy_codes__kv0_rp1_with_prefix``; ``greedy_step_logits__kv0_rp1``."""
    what, _, how = case.partition("__")
    cache, penalty = how.split("_")[:2]
    given, network = stored(fixture, "in"), network_of(fixture)
    steps: list[Tensor] = []
    handle = network.mel_head.register_forward_hook(lambda module, inputs, output: steps.append(output))
    codes = network.generate(
        network.conditioning(given["cond_mels"])[:1].detach(),
        given["text"][:1, : int(given["text_lengths"][0])],
        torch.zeros(1, fixture.tensors[f"out.{case}"].shape[1]),
        TokenSampling(repetition_penalty=GREEDY[penalty], temperature=0.0),
        prefix=given["prefix_codes"] if how.endswith("with_prefix") else None,
        positions="published_cache" if cache == "kv1" else "trained",
    )
    handle.remove()
    return torch.stack(steps, dim=1) if what == "greedy_step_logits" else codes


@handles("golden_autoregressive*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    if case.startswith("greedy"):
        check_output({case: greedy(fixture, case)}, fixture, case)
    elif case.startswith("grad_l2_norms"):
        check_norms(run(fixture)[case], fixture.json[case])
    else:
        check_output(run(fixture), fixture, case)


@handles("manifest_autoregressive*")
def check_manifest(fixture: Fixture, case: str) -> None:
    check_layout(fixture, {"which_model": "unified_voice2", **options(fixture.json["hyperparameters"])})
    older = dict.fromkeys(fixture.json["legacy_buffers_in_published_checkpoint"]["keys"], torch.zeros(1))
    assert UnifiedVoice.rename_state_dict(older) == {}
