"""What TorToiSe does between its networks, and one run through all of them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dlas.diffusion.processes import Timesteps
from dlas.diffusion.sampling import START
from dlas.inference.speech.codes import frames_of, spoken_length, with_silent_end
from dlas.inference.speech.stages import features_of, fit_to_text, fit_to_voice, spectrogram_of
from dlas.layers.mel import normalise_mel
from parity.harness import TOLERANCES, Fixture, handles
from parity.kinds import tortoise_autoregressive, tortoise_diffusion, tortoise_ranking
from parity.kinds.tortoise import build, check_output, stored


def beside(fixture: Fixture, stem: str) -> Fixture:
    """Another fixture of the folder."""
    return Fixture(fixture.path.with_name(f"{stem}.json"), fixture.group)


def networks(fixture: Fixture) -> dict[str, nn.Module]:
    """Those whose weights the file names, by their kind."""
    found: dict[str, nn.Module] = {}
    for stem in fixture.json["weights_from"]:
        other = beside(fixture, stem)
        config = other.json["config"]
        kind = other.json["network"]
        if kind == "autoregressive":
            found[kind] = build(other, "unified_voice2", tortoise_autoregressive.options(config), dropout=0)
        elif kind == "clvp2":
            found[kind] = build(other, "clvp2", tortoise_ranking.clvp_options(config), dropout=0)
        elif kind == "diffusion_decoder":
            found[kind] = build(other, "diffusion_tts_flat", tortoise_diffusion.options(config))
        else:
            found[kind] = build(other, {"vocoder": "univnet"}.get(kind, kind), config)
    return found


@lru_cache(maxsize=1)
@torch.no_grad()
def run(fixture: Fixture) -> dict[str, Any]:
    given, own = stored(fixture, "in"), networks(fixture)
    stop = int(re.search(r"stop token (\d+)", fixture.json["notes"]["fix_codes"])[1])
    found: dict[str, Any] = {"fix_codes_fixed": with_silent_end(given["fix_codes"], stop)}
    found["trim_length_of_fixed"] = torch.tensor([spoken_length(row) for row in found["fix_codes_fixed"]])
    lengths = fixture.tensors["out.diffusion_frames_for_latent_len"][:, 0]
    found["diffusion_frames_for_latent_len"] = torch.tensor([[length, frames_of(length)] for length in lengths.tolist()])

    gpt, decoder = own["autoregressive"], own["diffusion_decoder"]
    voice, sound_of_voice = gpt.conditioning(given["ar_cond_mels"]), decoder.conditioning(given["diff_cond_mels"])
    found |= {"ar_cond_latent": voice, "diff_cond_latent": sound_of_voice}
    codes = with_silent_end(given["candidate_codes_with_stop"], gpt.stop_mel)
    text = given["text_tokens"]
    by_text = fit_to_text(own["clvp2"], text, codes)
    by_clip = fit_to_voice(own["cvvp"], given["ar_cond_mels"][0], codes)
    mixed = torch.lerp(by_text, by_clip, 0.25)
    found |= {"fixed_codes": codes, "clvp_scores": by_text, "cvvp_scores_mean_over_clips": by_clip}
    found["mixed_scores_cvvp_amount_0p25"] = mixed
    best = by_text.argmax()
    row = codes[best, None]
    found["best_index"] = best
    latents = features_of(gpt, voice, text, row)
    heard = spoken_length(row[0])
    frames = frames_of(heard)
    found |= {"best_latents": latents, "trim_length": torch.tensor(heard), "mel_frames": torch.tensor(frames)}
    mel = decoded(fixture, decoder, latents[:, :heard], sound_of_voice, frames)
    found["denormalised_mel"] = mel
    # Of the reference's spectrogram: what the decoder's rounding would do to a sound has no bound.
    return found | {"waveform": own["vocoder"].inference(fixture.tensors["out.denormalised_mel"], given["vocoder_z"])}


def decoded(fixture: Fixture, decoder: Any, latents: Tensor, voice: Tensor, frames: int) -> Tensor:
    given = stored(fixture, "in")

    def noise(k: int) -> Tensor:
        return given["diff_noise"] if k == START else given["diff_step_noise"][k]

    steps, guidance = fixture.json["diffusion_steps"], fixture.json["cond_free_k"]
    return spectrogram_of(decoder, process_of(fixture), latents, voice, frames, noise, steps=steps, guidance=guidance)


def process_of(fixture: Fixture) -> Timesteps:
    return tortoise_diffusion.whole_process(beside(fixture, "golden_diffusion_decoder_tiny"))


@handles("golden_pipeline*", cases=lambda fixture: fixture.outputs)
def check(fixture: Fixture, case: str) -> None:
    if case != "denormalised_mel":
        check_output(run(fixture), fixture, case)
        return
    # At the noisiest step the data are the small difference of large numbers: rounding of the network's output grows by this.
    growth = process_of(fixture).first_ratio
    found, expected = normalise_mel(run(fixture)[case]), normalise_mel(fixture.tensors[f"out.{case}"])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=growth * TOLERANCES["output"]["atol"])
