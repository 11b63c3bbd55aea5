"""TorToiSe's ranking models, CLVP and CVVP."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from dlas.layers.contrastive import contrastive_loss, pair_similarity
from parity.harness import Fixture, handles
from parity.kinds.tortoise import build, cases, check_norms, check_output, gradient_norms, stored
from parity.manifests import check_layout

WITHOUT_MEANING = ("text_seq_len", "speech_seq_len", "wav_token_compression", "use_xformers")
"""Arguments of the reference's CLVP that change nothing with its rotary encoders."""


def clvp_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in WITHOUT_MEANING}


@lru_cache(maxsize=1)
def run_clvp(fixture: Fixture) -> dict[str, Any]:
    given, network = stored(fixture, "in"), build(fixture, "clvp2", clvp_options(fixture.json["config"]), dropout=0)
    text, speech = given["text"], given["speech_tokens"]
    found: dict[str, Any] = {}
    handles_ = []
    layers = network.text_transformer.transformer.attn_layers
    watched = {"text_layer0_prenorm": layers.layers[0][0][0], "text_layer0_attn_branch": layers.layers[0][1]}
    watched |= {"text_layer1_ff_branch": layers.layers[1][1], "text_emb": network.text_emb}
    watched |= {"enc_text": network.text_transformer, "enc_speech": network.speech_transformer}
    watched["rotary_freqs_text"] = layers.rotary_pos_emb
    for name, module in watched.items():
        handles_.append(module.register_forward_hook(lambda m, i, out, name=name: found.update({name: out})))
    with torch.no_grad():
        found["similarity"] = network(text, speech)
        for handle in handles_:
            handle.remove()
        found["loss_eval"] = network(text, speech, return_loss=True)
        found["text_latents_unnormalised"] = network.text_latents(text)
        found["speech_latents_unnormalised"] = network.speech_latents(speech)
        keep = (given["text_keep_mask"], given["speech_keep_mask"])
        latents = network.text_latents(text, keep[0]), network.speech_latents(speech, keep[1])
        found["train_loss_masked"] = contrastive_loss(*latents, network.temperature)
        found["train_similarity_masked"] = pair_similarity(*latents, network.temperature)
    loss = network.train()(text, speech, return_loss=True)
    loss.backward()
    found["train_loss_no_masking"] = loss
    found |= {f"grad.{name}": weight.grad for name, weight in network.named_parameters()}
    return found | {"grad_l2_norms__train_loss_no_masking": gradient_norms(network)}


@lru_cache(maxsize=1)
def run_cvvp(fixture: Fixture) -> dict[str, Any]:
    given, network = stored(fixture, "in"), build(fixture, "cvvp", fixture.json["config"])
    mel, speech = given["mel_cond"], given["speech_tokens"]
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["cond_emb"] = network.cond_emb(mel).transpose(1, 2)
        found["enc_cond"] = network.conditioning_transformer(found["cond_emb"])
        found["enc_speech"] = network.speech_transformer(network.speech_emb(speech))
        found["similarity"] = network(mel, speech)
        found["loss_eval"] = network(mel, speech, return_loss=True)
    loss = network.train()(mel, speech, return_loss=True)
    loss.backward()
    found["train_loss_no_masking"] = loss
    found |= {f"grad.{name}": weight.grad for name, weight in network.named_parameters()}
    return found | {"grad_l2_norms__train_loss_no_masking": gradient_norms(network)}


@handles("golden_clvp2*", "golden_cvvp*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    found = (run_clvp if fixture.json["network"] == "clvp2" else run_cvvp)(fixture)
    if case.startswith("grad_l2_norms"):
        check_norms(found[case], fixture.json[case])
    else:
        check_output(found, fixture, case)


@handles("manifest_clvp2*", "manifest_cvvp*")
def check_manifest(fixture: Fixture, case: str) -> None:
    name, config = fixture.json["network"], fixture.json["hyperparameters"]
    check_layout(fixture, {"which_model": name, **(clvp_options(config) if name == "clvp2" else config)})
