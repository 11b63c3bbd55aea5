"""Injectors of sound and speech: spectrograms as their layers make them, parts, masks, what frozen networks give."""

from __future__ import annotations

import pytest
import torch

import spoken
from dlas.context import Context
from dlas.errors import ConfigurationError, DataError, TrainingError
from dlas.injectors import create_injector
from dlas.layers.mel import HIGHEST_POWER, MelSpectrogram, normalise_mel, resample

NETWORKS = spoken.networks()


def run(type_, training=True, step=0, positions=(0, 1, 2, 3), state=None, **options):
    where = Context(NETWORKS, step=step, training=training, seed=5, positions=list(positions))
    return create_injector({"type": type_, "out": "o", **options})({**spoken.state(), **(state or {})}, where)


POWERS = MelSpectrogram(power=2, scale="htk")


def test_spectrograms_are_those_of_the_layer():
    loud = 3 * spoken.state()["wav"]
    assert torch.equal(run("mel_spectrogram", **{"in": "wav"}, state={"wav": loud})["o"], MelSpectrogram()(loud.clamp(-1, 1)))
    mel = MelSpectrogram(sampling_rate=24000, n_mel_channels=100, mel_fmax=12000)(spoken.state()["wav"])
    options = {"in": "wav", "sampling_rate": 24000, "n_mel_channels": 100, "mel_fmax": 12000}
    assert torch.equal(run("mel_spectrogram", do_normalization=True, **options)["o"], normalise_mel(mel))
    assert torch.equal(run("normalize_mel", **{"in": "m"}, state={"m": mel})["o"], normalise_mel(mel))


def test_spectrograms_of_powers_and_their_normalisations():
    wav = spoken.state()["wav"]
    norms = torch.load(spoken.MEL_NORMS, weights_only=True)
    assert torch.equal(run("torch_mel_spectrogram", **{"in": "wav"})["o"], POWERS(wav))
    found = run("torch_mel_spectrogram", mel_norm_file=str(spoken.MEL_NORMS), **{"in": "wav"})["o"]
    assert torch.equal(found, POWERS(wav) / norms[:, None])
    found = run("torch_mel_spectrogram", true_normalization=True, **{"in": "wav"})["o"]
    assert torch.equal(found, normalise_mel(POWERS(wav), HIGHEST_POWER))
    # Over the sum of the squared window, as long as the floor is not met.
    found = run("torch_mel_spectrogram", normalize=True, **{"in": "wav"})["o"]
    window = torch.hann_window(1024).square().sum()
    torch.testing.assert_close(found, POWERS(wav) - window.log(), rtol=0, atol=1e-4)


def test_gradients_do_not_flow_through_spectrograms():
    wav = spoken.state()["wav"].requires_grad_()
    assert not run("torch_mel_spectrogram", **{"in": "wav"}, state={"wav": wav})["o"].requires_grad


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no file at mel_norm_file"),
        (b"text", "is no file that torch has saved"),
        (torch.ones(4), r"holds a tensor \(4,\); expected 80 numbers"),
        ({"a": 1}, "holds a dict"),
    ],
)
def test_files_of_norms_are_checked(tmp_path, content, words):
    if isinstance(content, bytes):
        (tmp_path / "n.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "n.pth")
    with pytest.raises(DataError, match=words):
        run("torch_mel_spectrogram", mel_norm_file=str(tmp_path / "n.pth"), **{"in": "wav"})


def test_two_normalisations_are_refused():
    with pytest.raises(ConfigurationError, match="both normalise"):
        run("torch_mel_spectrogram", true_normalization=True, mel_norm_file="x", **{"in": "wav"})


# ---------------------------------------------------------------------------------------------------- parts


def test_parts_lie_within_the_sound_and_are_those_of_their_places():
    ramp = torch.arange(4096).float().expand(4, 1, 4096)
    lengths = spoken.state()["wav_lengths"]
    starts = []
    for first in range(0, 80, 4):
        options = {"in": "wav", "crop_size": 700, "lengths_key": "wav_lengths", "crop_start_key": "s"}
        found = run("random_audio_crop", state={"wav": ramp}, positions=range(first, first + 4), **options)
        assert torch.equal(found["o"], (found["s"][:, None] + torch.arange(700)).float()[:, None])
        starts.append(found["s"])
    low, high = torch.stack(starts).min(0).values, torch.stack(starts).max(0).values
    assert (low >= 0).all() and (high <= lengths - 700).all()
    assert (high - low > 0.5 * (lengths - 700)).all()  # all of the room is used


def test_parts_of_short_sounds_and_the_part_that_is_left_out():
    found = run("random_audio_crop", **{"in": "wav"}, crop_size=9999)["o"]
    assert torch.equal(found, spoken.state()["wav"])
    found = run("random_audio_crop", **{"in": "wav"}, crop_size=1000, min_buffer=3000, crop_start_key="s")["s"]
    assert (found >= 3000).all() and (found <= 3096).all()
    found = run("random_audio_crop", **{"in": "wav"}, crop_size=2000, lengths_key="wav_lengths", crop_start_key="s")
    assert found["s"][1] == 0 and found["o"].shape == (4, 1, 2000)  # shorter than the part


def test_lengths_of_parts_are_drawn_for_each_batch():
    options = {"in": "wav", "min_crop_size": 100, "max_crop_size": 900}
    sizes = {run("random_audio_crop", step=step, **options)["o"].shape[-1] for step in range(20)}
    assert len(sizes) > 10 and min(sizes) >= 100 and max(sizes) <= 900
    assert (
        run("random_audio_crop", **options)["o"].shape == run("random_audio_crop", positions=(7, 8, 9, 1), **options)["o"].shape
    )
    for wrong in ({}, {"crop_size": 5, "min_crop_size": 4}, {"min_crop_size": 9, "max_crop_size": 4}, {"max_crop_size": 4}):
        with pytest.raises(ConfigurationError, match="give crop_size, or min_crop_size and max_crop_size"):
            run("random_audio_crop", **{"in": "wav"}, **wrong)


def test_random_parts_and_masks_belong_to_samples():
    for options in ({"type_": "random_audio_crop", "in": "wav", "crop_size": 700}, {"type_": "mel_mask", "in": "mel"}):
        whole, state = run(**options)["o"], spoken.state()
        half = run(**options, positions=(2, 3), state={key: value[2:] for key, value in state.items()})["o"]
        assert torch.equal(whole[2:], half)
        assert not torch.equal(whole, run(**options, positions=(4, 5, 6, 7))["o"])


def test_beginnings_and_rates():
    state = spoken.state()
    found = run("audio_clip", **{"in": "wav"}, clip_size=1000, ctc_codes_key="codes", ctc_out_key="c")
    assert torch.equal(found["o"], state["wav"][..., :1000])
    assert torch.equal(found["c"], state["codes"][:, :3])  # 12 codes for 4096 samples: 2.93
    found = run("audio_resample", **{"in": "wav"}, input_sample_rate=22050, output_sample_rate=24000)["o"]
    assert torch.equal(found, resample(state["wav"], 22050, 24000))
    with pytest.raises(ConfigurationError, match="go together"):
        run("audio_clip", **{"in": "wav"}, clip_size=5, ctc_out_key="c")


def test_masks_are_stripes_of_the_sizes_asked_for():
    mel = torch.ones(4, 80, 60)
    widths = set()
    for first in range(0, 200, 4):
        options = {"in": "mel", "frequency_mask_count": 1, "time_mask_count": 0, "frequency_mask_size_high": 9}
        found = run("mel_mask", state={"mel": mel}, positions=range(first, first + 4), **options)["o"]
        for row in found:
            hidden = (row == 0).all(1)
            assert torch.equal(row, (~hidden)[:, None].float().expand(80, 60))
            widths.add(int(hidden.sum()))
            assert (hidden.int().diff() != 0).sum() <= 2  # one stripe
    assert widths == set(range(9))
    assert torch.equal(mel, torch.ones(4, 80, 60))
    assert torch.equal(run("mel_mask", training=False, **{"in": "mel"})["o"], spoken.state()["mel"])
    found = run("mel_mask", state={"mel": mel}, frequency_mask_count=0, time_mask_count=3, **{"in": "mel"})["o"]
    assert 0 < (found[:, 0] == 0).sum() <= 4 * 12


# ---------------------------------------------------------------------------------------------------- frozen networks


def test_codes_are_those_of_the_network_at_rest():
    state, dvae = spoken.state(), NETWORKS["dvae"]
    dvae.train()
    codebook = {key: value.clone() for key, value in dvae.state_dict().items()}
    found = run("discrete_token", **{"in": "mel"})["o"]
    assert found.shape == (4, 5) and found.dtype == torch.int64  # 17 frames, 4 a code
    assert dvae.training and all(value.equal(codebook[key]) for key, value in dvae.state_dict().items())
    padded = torch.nn.functional.pad(state["mel"], (0, 3))
    assert torch.equal(found, dvae.eval().get_codebook_indices(padded))
    with pytest.raises(TrainingError, match="'gpt' makes no codes"):
        run("discrete_token", **{"in": "mel"}, dvae_name="gpt")


def test_features_are_those_of_the_parts_put_together_by_hand():
    state, gpt = spoken.state(), NETWORKS["gpt"]
    gpt.train()  # its dropout must not show
    options = {"mel_norm_file": str(spoken.MEL_NORMS), "conditioning_length": 3000, **spoken.LATENTS}
    found = run("gpt_voice_latent", **{"in": "wav"}, **options)["o"]
    assert gpt.training and not found.requires_grad
    norms = torch.load(spoken.MEL_NORMS, weights_only=True)[:, None]
    codes = NETWORKS["dvae"].eval().get_codebook_indices(torch.nn.functional.pad(POWERS(state["wav"]) / norms, (0, 3)))[:, :4]
    clips = torch.nn.functional.pad(state["clips"], (0, 952))
    clips = torch.stack([POWERS(clips[:, n]) / norms for n in range(2)], 1)
    told = (state["text"], state["text_lengths"], codes, state["wav_lengths"])
    expected = gpt.eval()(clips, *told, return_latent=True, clip_inputs=False)
    assert found.shape == (4, 4, 8)
    torch.testing.assert_close(found, expected)
    single = run("gpt_voice_latent", **{"in": "wav"}, **options, state={"clips": state["clips"][:, 0]})["o"]
    torch.testing.assert_close(single, gpt(clips[:, 0], *told, return_latent=True, clip_inputs=False))


def test_moments_of_latents_are_compared_and_train_what_draws_them():
    latent = spoken.state()["latent"].requires_grad_()
    options = {"in": "latent", "var_loss": "v", "conditioning_clip": "mel", "generator": "gpt"}
    found = run("conditioning_latent_distribution_divergence", state={"latent": latent}, **options)
    real = NETWORKS["gpt"].eval().conditioning(spoken.state()["mel"])
    torch.testing.assert_close(found["o"], (latent.mean(0) - real.mean(0)).square().mean())
    torch.testing.assert_close(found["v"], (latent.var(0) - real.var(0)).square().mean())
    (found["o"] + found["v"]).backward()
    assert latent.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in NETWORKS["gpt"].parameters())
    with pytest.raises(TrainingError, match="two samples"):
        run("conditioning_latent_distribution_divergence", state={"latent": latent[:1]}, positions=(0,), **options)
