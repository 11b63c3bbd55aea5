"""Speaking: texts in pieces, voices, the pipeline over tiny networks, and the command."""

from __future__ import annotations

import json
import shutil
import wave
from http.server import ThreadingHTTPServer

import pytest
import torch

from dlas.cli.main import main
from dlas.diffusion import create_process
from dlas.errors import CheckpointError, ConfigurationError, DataError, UserError
from dlas.inference.speech.pipeline import Speaker
from dlas.inference.speech.presets import PRESETS, Settings, settings_of
from dlas.inference.speech.sentences import split_text
from dlas.inference.speech.stages import spectrogram_of
from dlas.layers.mel import denormalise_mel
from tiny_speech import QUICK, make_clip, make_models

TEXT = "The first sentence is said at once. Then, after it, comes another one!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("speech") / "models")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voice")
    make_clip(folder / "a.wav")
    make_clip(folder / "b.wav", frequency=330.0, rate=44100)
    return folder


@pytest.fixture(scope="module")
def speaker(folder):
    return Speaker.load(folder, device="cpu")


@pytest.fixture(scope="module")
def voice(speaker, clips):
    return speaker.voices.read(clips)


def sound_of(speaker, voice, text=TEXT, **settings):
    return torch.cat([piece.sound for piece in speaker.say(text, voice, **(QUICK | settings))])


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m"])
def test_a_decoder_may_predict_the_spectrogram(sampler):
    random = torch.Generator().manual_seed(0)
    true = torch.rand(1, 5, 8, generator=random) * 2 - 1

    seen = []

    class Knowing(torch.nn.Module):  # whatever it is shown
        def timestep_independent(self, aligned, voice, frames):
            return torch.zeros(1, 3, frames)

        def forward(self, x, times, precomputed_aligned_embeddings):
            seen.append(int(times))
            return torch.cat((true, torch.zeros_like(true)), dim=1)

    process = create_process({"type": "vp", "schedule": "linear", "steps": 50})
    given = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 6), 8, lambda k: torch.randn(1, 5, 8, generator=random)
    made = spectrogram_of(Knowing(), process, *given, steps=4, sampler=sampler, prediction="x0")
    torch.testing.assert_close(made, denormalise_mel(true))
    assert seen == [49, 37, 24, 11]  # not the clean end
    seen.clear()
    spectrogram_of(Knowing(), process, *given, steps=4, sampler=sampler)
    assert seen == [49, 33, 16, 0]


def test_sentences_are_cut_where_they_end():
    text = 'Dr. Smith paid 3.50 dollars. J. R. came, too!  "Did he?" Yes... he did.\n\nA new paragraph without an end'
    expected = ["Dr. Smith paid 3.50 dollars.", "J. R. came, too!", '"Did he?"', "Yes...", "he did."]
    assert split_text(text, lambda piece: True, shortest=0) == [*expected, "A new paragraph without an end"]
    assert split_text("第一句。第二句！", lambda piece: True, shortest=0) == ["第一句。", "第二句！"]


def test_short_sentences_are_said_with_the_next():
    assert split_text("Yes. No. It is a long sentence. Oh.", lambda piece: True) == ["Yes. No. It is a long sentence.", "Oh."]


@pytest.mark.parametrize("most", [60, 30, 12, 3, 1])
def test_pieces_fit_and_nothing_is_lost(most):
    text = "It was late, and nobody came; the lamp, which was old, went out: darkness - extraordinarily dark. So it was."
    pieces = split_text(text, lambda piece: len(piece) <= most)
    assert max(map(len, pieces)) <= most
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_long_sentences_are_cut_at_the_greater_pause():
    text = "One, two, three; four, five, six"
    assert split_text(text, lambda piece: len(piece) <= 20) == ["One, two, three;", "four, five, six"]
    assert split_text(text, lambda piece: len(piece) <= 11, 0) == ["One, two,", "three;", "four, five,", "six"]


@pytest.mark.parametrize("text", ["", "  \n", "...!"])
def test_a_text_without_words_is_refused(text):
    with pytest.raises(DataError, match="nothing to say"):
        split_text(text, lambda piece: True)


def test_the_presets_are_those_of_tortoise():
    assert {name: (s.candidates, s.steps, s.guidance > 0) for name, s in PRESETS.items()} == {
        "ultra_fast": (16, 30, False),
        "fast": (96, 80, True),
        "standard": (256, 200, True),
        "high_quality": (256, 400, True),
    }
    changed = settings_of("ultra_fast", candidates=4, steps=None)
    assert (changed.candidates, changed.steps) == (4, 30)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"sampler": "euler_a"}, "ancestral, ddim"),
        ({"voice_share": 2.0}, "from 0 to 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Settings(**settings)


def test_unknown_settings_and_presets_are_refused():
    with pytest.raises(ConfigurationError, match="did you mean 'candidates'"):
        settings_of("fast", candidate=3)
    with pytest.raises(ConfigurationError, match="ultra_fast"):
        settings_of("slow")


def test_the_same_seed_gives_the_same_sound(speaker, voice):
    first = sound_of(speaker, voice, seed=1)
    assert torch.equal(first, sound_of(speaker, voice, seed=1))
    assert len(first) and bool(first.isfinite().all()) and float(first.abs().max()) <= 1
    assert not torch.equal(first, sound_of(speaker, voice, seed=2))


def test_sound_does_not_depend_on_the_batch(speaker, voice):
    whole = [(piece.codes, piece.sound) for piece in speaker.say(TEXT, voice, **(QUICK | {"candidates": 5, "batch": 5}))]
    split = [(piece.codes, piece.sound) for piece in speaker.say(TEXT, voice, **(QUICK | {"candidates": 5, "batch": 2}))]
    for (codes, sound), (expected, reference) in zip(split, whole, strict=True):
        assert codes.tolist() == expected.tolist()
        torch.testing.assert_close(sound, reference, rtol=1e-4, atol=1e-5)


def test_pieces_come_one_by_one_with_what_they_cost(speaker, voice):
    pieces = speaker.say(TEXT, voice, **QUICK)
    first = next(pieces)
    assert first.text == "The first sentence is said at once."
    assert list(first.seconds) == ["codes", "ranking", "features", "spectrogram", "sound"]
    assert first.real_time_factor == pytest.approx(sum(first.seconds.values()) / (len(first.sound) / 24000))
    assert [piece.text for piece in pieces] == ["Then, after it, comes another one!"]


def test_a_piece_does_not_depend_on_what_follows(speaker, voice):
    alone = next(speaker.say("The first sentence is said at once.", voice, **QUICK))
    assert torch.equal(next(speaker.say(TEXT, voice, **QUICK)).sound, alone.sound)


def test_every_setting_of_the_decoder_is_heard(speaker, voice):
    base = sound_of(speaker, voice)
    for change in ({"sampler": "ddim"}, {"sampler": "dpmpp_2m"}, {"guidance": 0.0}, {"start_noise": 0.5}, {"steps": 5}):
        assert not torch.equal(base, sound_of(speaker, voice, **change)), change


def test_the_best_candidate_is_heard(speaker, voice):
    """Among more candidates, whose first are the same, the best is at least as good."""
    few, many = (next(speaker.say(TEXT, voice, **(QUICK | {"candidates": count}))) for count in (2, 9))
    assert many.score >= few.score
    alone = next(speaker.say(TEXT, voice, **(QUICK | {"candidates": 1})))
    assert few.score >= alone.score


def test_the_voice_is_heard_and_ranked(speaker, voice, clips):
    other = speaker.voices.read(clips / "b.wav")
    assert not torch.equal(sound_of(speaker, voice), sound_of(speaker, other))
    text_only, mixed = (next(speaker.say(TEXT, voice, **QUICK, voice_share=share)).score for share in (0.0, 0.5))
    assert mixed != text_only


def test_voices_are_kept(speaker, voice, tmp_path):
    voice.save(tmp_path / "voice.safetensors")
    kept = speaker.voices.read(tmp_path / "voice.safetensors")
    assert torch.equal(sound_of(speaker, kept, voice_share=0.5), sound_of(speaker, voice, voice_share=0.5))
    torch.save((voice.speech, voice.sound), tmp_path / "pair.pth")
    pair = speaker.voices.read(tmp_path / "pair.pth")
    assert torch.equal(sound_of(speaker, pair), sound_of(speaker, voice))
    with pytest.raises(ConfigurationError, match="latents only"):
        speaker.say(TEXT, pair, voice_share=0.5, **QUICK)


def test_random_voices(speaker):
    first, again, other = (speaker.voices.random(seed) for seed in (3, 3, 4))
    assert torch.equal(first.speech, again.speech) and torch.equal(first.sound, again.sound)
    assert not torch.equal(first.speech, other.speech)
    assert len(sound_of(speaker, first))


def test_networks_without_a_code_of_silence(tmp_path, clips):
    """Utterances end with the stop token, and the decoder may read codes."""
    speaker = Speaker.load(make_models(tmp_path / "own", silence=None, decoder_reads="codes"), device="cpu")
    voice = speaker.voices.read(clips)
    for share in (0.0, 0.5):
        piece = next(speaker.say(TEXT, voice, **QUICK, voice_share=share))
        assert int((piece.codes == 95).sum()) == 0 and 1 <= len(piece.codes) <= 12


def test_half_precision_speaks(folder, clips):
    speaker = Speaker.load(folder, device="cpu", precision="bf16")
    assert speaker.models.gpt.mel_head.weight.dtype == torch.bfloat16
    sound = sound_of(speaker, speaker.voices.read(clips), voice_share=0.5)
    assert len(sound) and bool(sound.isfinite().all())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "vocoder.pth").unlink(), "lacks vocoder.pth"),
        (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json"),
        (lambda f: (f / "speech.yml").unlink(), "does not fit"),
        (lambda f: (f / "speech.yml").write_text("autoregresive: {}"), "did you mean 'autoregressive'"),
        (lambda f: (f / "speech.yml").write_text("clvp: 3"), "clvp: expected Mapping, found 3"),
        (lambda f: (f / "speech.yml").write_text("decoder_reads: words"), "one of latents, codes"),
        (lambda f: (f / "speech.yml").write_text("decoder_predicts: v"), "one of eps, x0"),
        (lambda f: (f / "speech.yml").write_text("[1"), "YAML"),
        (lambda f: (f / "mel_norms.pth").write_bytes(b"no"), "mel_norms.pth: cannot be read"),
        (lambda f: torch.save({"a": torch.ones(1)}, f / "clvp2.pth") or (f / "clvp2.safetensors").unlink(), "does not fit"),
    ],
)
def test_wrong_models_are_named(folder, tmp_path, spoil, words):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(UserError, match=words) as caught:
        Speaker.load(copy, device="cpu")
    assert str(copy) in str(caught.value)


def test_missing_folder_and_wrong_voices_are_named(speaker, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        Speaker.load(tmp_path / "none", device="cpu")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.wav").write_text("no sound")
    make_clip(tmp_path / "silent.wav", seconds=0)
    torch.save((torch.ones(1, 3), torch.ones(1, 3)), tmp_path / "other.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name, words in {
        "nobody": "no such voice",
        "empty": "no clips in this folder",
        "text.wav": "cannot be decoded",
        "silent.wav": "holds no samples",
        "other.pth": "latents of other networks",
        "bad.safetensors": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=words):
            speaker.voices.read(tmp_path / name)


def test_limits_of_the_networks_are_kept(speaker, voice):
    with pytest.raises(ConfigurationError, match="41 codes at once at most"):
        speaker.say(TEXT, voice, **(QUICK | {"max_codes": 42}))
    pieces = list(speaker.say("word, " * 40, voice, **(QUICK | {"candidates": 1, "max_codes": 41})))
    assert len(pieces) > 1 and all(len(piece.sound) for piece in pieces)
    unlimited = {name: value for name, value in QUICK.items() if name != "max_codes"}  # a preset says more than they can
    assert [len(piece.codes) <= 41 for piece in speaker.say("word", voice, **unlimited)] == [True]


def command(*arguments: object) -> int:
    return main(["speak", *map(str, arguments), *(f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items())])


def test_the_command_writes_sound_and_what_made_it(folder, clips, tmp_path, capsys):
    out = tmp_path / "said.wav"
    saved = tmp_path / "voice.safetensors"
    assert command(TEXT, "--models", folder, "--voice", clips, "-o", out, "--seed", 5, "--save-voice", saved) == 0
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        count = file.getnframes()
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["seed"] == 5 and told["settings"]["candidates"] == 3 and told["settings"]["top_p"] == 0.8
    assert told["seconds"] == pytest.approx(count / 24000, abs=1e-4)
    assert [piece["text"] for piece in told["pieces"]] == [
        "The first sentence is said at once.",
        "Then, after it, comes another one!",
    ]
    assert sum(told["seconds_by_stage"].values()) == pytest.approx(told["real_time_factor"] * told["seconds"], rel=1e-2)
    assert "Then, after it" in capsys.readouterr().out
    first = out.read_bytes()
    assert command(TEXT, "--models", folder, "--voice", saved, "-o", out, "--seed", 5) == 0
    assert out.read_bytes() == first
    assert command(TEXT, "--models", folder, "-o", out, "--seed", 5) == 0  # a random voice
    assert out.read_bytes() != first


def test_the_command_serves_a_page(folder, monkeypatch, capsys):
    asked = []

    def until_stopped(server):
        asked.append(server.server_port)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", until_stopped)
    assert command("--models", folder, "--serve", 0) == 0
    assert f"http://127.0.0.1:{asked[0]} speaks" in capsys.readouterr().out
    assert command("--models", folder, "--serve", 0, "--preset", "slow") == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["Hello there."], 2, "nothing to write"),
        (["Hello there.", "-o", "out.mp3"], 2, "ends in .wav"),
        (["-o", "out.wav"], 1, "nothing to say"),
        (["Hello there.", "-o", "out.wav", "--preset", "slow"], 2, "presets: ultra_fast"),
        (["Hello there.", "-o", "out.wav", "--voice", "nobody"], 1, "no such voice"),
        (["...", "-o", "out.wav"], 1, "nothing to say"),
    ],
)
def test_the_command_says_what_is_wrong(folder, tmp_path, monkeypatch, capsys, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments, "--models", folder) == status
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
