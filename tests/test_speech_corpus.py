"""`dlas data speech`, on speech whose every boundary, voice and fault is known."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import synthetic_speech as synthetic
from dlas.cli.main import main
from dlas.data.audio.manifests import read_utterances
from dlas.data.base import Request, create_dataset
from dlas.data.corpus.functions import ENCODER, RECOGNISER, ClipFunction
from dlas.data.corpus.plan import SpeechPlan
from dlas.data.corpus.quality import bandwidth, clipped_share, signal_to_noise
from dlas.data.corpus.splitting import speech_parts
from dlas.data.corpus.voices import most_similar, similar_clips
from dlas.errors import ConfigurationError, DataError

RATE = synthetic.RATE
SHORT = ("--min-seconds", "1", "--workers", "0")
COUNT = 6  # utterances of a recording

TRANSCRIBE = '''
"""Says how long a clip is."""
import os, time

def transcribe(clips, rate, word="Sample", wait="0"):
    assert rate == 22050 and all(clip.dtype == "float32" and clip.ndim == 1 for clip in clips)
    time.sleep(float(wait))
    return [f"{word}  {len(clip)}" for clip in clips]
'''


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Recordings of three voices together, and of one voice with each kind of dirt; and where speech is in them."""
    root = tmp_path_factory.mktemp("recordings")
    places = {}
    voices = [synthetic.voice(name, number) for number, name in enumerate(synthetic.SPEAKERS)]
    for name in ("one", "two"):
        sound, places[name], _ = synthetic.recording(voices, 2 * COUNT, len(name) + ord(name[0]))
        synthetic.write(root / f"radio/{name}.wav", sound)
    for number, (reason, spoil) in enumerate(synthetic.DIRT.items()):
        sound, places[reason], _ = synthetic.recording([synthetic.voice("middle", number)], COUNT, number)
        synthetic.write(root / "dirt" / f"{reason}.wav", spoil(sound))
    return root, places


def speech(*arguments: object) -> int:
    return main(["data", "speech", *map(str, arguments)])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "out"
    function = out.parent / "transcribe.py"
    function.write_text(TRANSCRIBE)
    assert speech(corpus[0], "-o", out, *SHORT, "--recogniser", function) == 0
    return out, function


def test_speech_is_found_where_it_is(corpus):
    """F1 of beginnings and ends, within 100 ms."""
    root, places = corpus
    hits = found_ones = true_ones = 0
    for name in ("one", "two"):
        sound = torch.from_numpy(soundfile.read(root / f"radio/{name}.wav", dtype="float32")[0])
        found = [time / RATE for part in speech_parts(sound, RATE, SpeechPlan()) for time in part]
        true = [time for place in places[name] for time in place]
        hits += sum(min(abs(time - each) for each in found) <= 0.1 for time in true)
        found_ones, true_ones = found_ones + len(found), true_ones + len(true)
    assert true_ones == 2 * 2 * 2 * COUNT
    assert 2 * hits / (found_ones + true_ones) >= 0.95
    exact = SpeechPlan(keep_silence=0.0)
    for (start, end), (first, last) in zip(speech_parts(sound, RATE, exact), places["two"], strict=True):
        assert abs(start / RATE - first) < 0.03 and abs(end / RATE - last) < 0.03  # a syllable swells
    assert speech_parts(torch.zeros(RATE), RATE, exact) == []
    assert speech_parts(torch.ones(RATE), RATE, exact) == [(0, RATE)]


def test_short_pauses_and_margins():
    loud, gap = torch.ones(2000), torch.zeros
    plan = SpeechPlan(min_silence=0.6, keep_silence=0.05)
    sound = torch.cat([gap(300), loud, gap(590), loud, gap(610), loud, gap(20)])
    assert speech_parts(sound, 1000, plan) == [(250, 4940), (5450, 7520)]


def test_each_kind_of_dirt_is_rejected_for_what_it_is(made, corpus):
    """Precision and recall of each rule, over clips that are long enough."""
    judged = [part for part in lines(made[0] / "rejected.jsonl") if "too short" not in part["rejected"]]
    kept = lines(made[0] / "manifest.jsonl")
    assert {each["source"] for each in kept} >= {"one", "two"}
    for reason in synthetic.DIRT:
        rejected = [part["source"] for part in judged if reason in part["rejected"]]
        right = rejected.count(reason)
        assert right / COUNT >= 0.9, reason
        assert right / len(rejected) >= 0.9, reason
    assert sum(each["source"] in ("one", "two") for each in kept) >= 0.9 * 4 * COUNT


def test_measures_in_closed_form():
    time = torch.arange(RATE) / RATE
    for top in (1000.0, 5000.0):
        tones = sum(torch.sin(2 * torch.pi * frequency * time) for frequency in torch.arange(100, top, 100.0))
        assert abs(bandwidth(tones, RATE) - top) <= 500
    whistle = tones + torch.sin(2 * torch.pi * 9000 * time)
    assert bandwidth(whistle, RATE) < 6000
    sine = torch.sin(2 * torch.pi * 440.3 * time)
    assert clipped_share(sine.clamp(-0.5, 0.5)) == pytest.approx(2 / 3, abs=0.01)
    assert clipped_share(torch.linspace(-1, 1, 10001)) == pytest.approx(0.001, abs=2e-4)
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    half = torch.cat([sine[: RATE // 2], torch.zeros(RATE // 2)]) + 0.01 * noise
    assert signal_to_noise(half, RATE) == pytest.approx(10 * np.log10(0.5 / 1e-4), abs=1.0)
    assert signal_to_noise(torch.ones(RATE), RATE) == 0.0


def test_the_manifest_says_what_data_sets_read(made):
    out, _ = made
    entries = lines(out / "manifest.jsonl")
    utterances = read_utterances(out / "manifest.jsonl", "jsonl")
    assert [u.text for u in utterances] == [e["text"] for e in entries]
    assert {u.speaker for u in utterances} == {"radio"}
    for entry, utterance in zip(entries, utterances, strict=True):
        sound, rate = soundfile.read(utterance.path)
        assert rate == 22050 and len(sound) / rate == pytest.approx(entry["duration"], abs=0.001)
        assert entry["heard"] == f"Sample  {len(sound)}" and entry["text"] == f"sample {len(sound)}"  # the cleaner's work
        assert len(entry["similar"]) == 3 and entry["file"] not in entry["similar"]
        assert set(entry["similar"]) <= {each["file"] for each in entries}
    report = json.loads((out / "report.json").read_text())
    assert report["kept"]["clips"] == len(entries) and set(report["speakers"]) == {"radio"}
    assert report["kept"]["seconds"] == pytest.approx(sum(e["duration"] for e in entries), abs=0.1)
    for reason, amount in report["rejected"].items():
        assert amount["clips"] == sum(reason in part["rejected"] for part in lines(out / "rejected.jsonl"))


def test_similar_clips_are_of_the_same_voice(made, corpus):
    """Three voices take turns in the recordings: of the three similar clips of each, how many are of its voice."""
    entries = lines(made[0] / "manifest.jsonl")
    voices = {}
    for entry in entries:
        distances = [abs(entry["start"] - place[0]) for place in corpus[1][entry["source"]]]
        voices[entry["file"]] = int(np.argmin(distances)) % len(synthetic.SPEAKERS)
    right = [voices[each] == voices[entry["file"]] for entry in entries for each in entry["similar"]]
    assert len(right) == 3 * len(entries) and np.mean(right) >= 0.9


def test_conditioning_is_drawn_from_similar_clips(tmp_path):
    """Clips of one speaker, told apart by their level."""
    names = ["a.wav", "b.wav", "c.wav", "d.wav"]
    for number, name in enumerate(names):
        synthetic.write(tmp_path / name, np.full(RATE, 0.1 * (number + 1)))
    similar = {"a.wav": ["c.wav"], "b.wav": ["d.wav", "c.wav"], "c.wav": ["a.wav"], "d.wav": []}
    manifest = tmp_path / "manifest.jsonl"
    entries = [{"file": name, "text": "one", "speaker": "x", "similar": similar[name]} for name in names]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    options = {"mode": "paired_voice_audio", "path": str(manifest), "fetcher_mode": "jsonl", "sample_rate": RATE}
    options |= {"load_conditioning": True, "conditioning_length": 100, "use_bpe_tokenizer": False}
    data = create_dataset(options, phase="train", name="train")
    heard = {name: set() for name in names}
    for position in range(80):
        level = float(data[Request(position % 4, position, 0)]["conditioning"].mean())
        heard[names[position % 4]].add(names[round(level * 10) - 1])
    assert heard == {"a.wav": {"c.wav"}, "b.wav": {"d.wav", "c.wav"}, "c.wav": {"a.wav"}, "d.wav": {"a.wav", "b.wav", "c.wav"}}
    manifest.write_text(json.dumps(entries[0] | {"similar": "c.wav"}))
    with pytest.raises(DataError, match=r"manifest.jsonl:1: expected \"similar\": \["):
        read_utterances(manifest, "jsonl")


def test_similarity_in_closed_form():
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 3.0]])
    assert most_similar(vectors, 1) == [[1], [0], [3], [2]]
    assert most_similar(vectors, 9) == [[1, 3, 2], [0, 3, 2], [3, 1, 0], [2, 1, 0]]
    assert similar_clips(["a", "b", "a", "a"], vectors, 1) == [[3], [], [3], [2]]


def test_a_second_call_makes_nothing_and_sources_stay(made, corpus, capsys):
    out, function = made
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted((out / "clips").rglob("*.flac"))}
    sources = {path: path.read_bytes() for path in corpus[0].rglob("*.wav")}
    manifest = (out / "manifest.jsonl").read_bytes()
    assert speech(corpus[0], "-o", out, *SHORT, "--recogniser", function, "--verify") == 0
    said = capsys.readouterr().out
    assert f"{len(sources)} there already" in said and "rejected as noisy" in said
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted((out / "clips").rglob("*.flac"))} == before
    assert {path: path.read_bytes() for path in corpus[0].rglob("*.wav")} == sources
    assert (out / "manifest.jsonl").read_bytes() == manifest
    spoiled = next(iter(before))
    spoiled.write_bytes(b"x")
    assert speech(corpus[0], "-o", out, *SHORT, "--recogniser", function) == 0
    assert spoiled.read_bytes() == before[spoiled][1]
    assert (out / "manifest.jsonl").read_bytes() == manifest


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_call_goes_on_to_the_same_manifest(made, corpus, tmp_path, workers):
    """Killed while it cuts and again while it transcribes; by one process or several."""
    out, function = tmp_path / "out", made[1]
    command = ["data", "speech", str(corpus[0]), "-o", str(out), "--min-seconds", "1", "--workers", str(workers)]
    command += ["--recogniser", str(function), "--batch-size", "3"]
    for pattern in (".prepare/sources/*.json", ".prepare/texts-*.jsonl"):
        slowed = [*command, "--recogniser-option", "wait=60"] if "texts" in pattern else command
        process = multiprocessing.get_context("fork").Process(target=main, args=(slowed,))
        process.start()
        deadline = time.monotonic() + 60
        while not list(out.glob(pattern)) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "manifest.jsonl").exists()
    assert main(command) == 0
    for name in ("manifest.jsonl", "rejected.jsonl", "report.json"):
        assert (out / name).read_bytes() == (made[0] / name).read_bytes()


def test_texts_that_are_there_are_not_asked_for_again(made, corpus, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    kept = next((out / ".prepare").glob("texts-*.jsonl"))
    everything = kept.read_bytes()
    kept.write_bytes(everything[: len(everything) // 2])  # in the middle of a line
    function = tmp_path / "transcribe.py"
    function.write_text(TRANSCRIBE)  # the same content elsewhere
    assert speech(corpus[0], "-o", out, *SHORT, "--recogniser", function) == 0
    assert (out / "manifest.jsonl").read_bytes() == (made[0] / "manifest.jsonl").read_bytes()
    assert set(kept.read_bytes().splitlines()) == set(everything.splitlines())
    function.write_text(TRANSCRIBE.replace("return [", "raise AssertionError; return ["))
    with pytest.raises(AssertionError):  # another function is asked
        speech(corpus[0], "-o", out, *SHORT, "--recogniser", function)


def test_nothing_is_overwritten_or_mixed(made, corpus, tmp_path, capsys):
    out, _ = made
    assert speech(corpus[0], "-o", out, "--min-seconds", "2", "--workers", "0") == 2
    assert "min_seconds was 1.0 and is 2.0" in capsys.readouterr().err
    assert speech(corpus[0], "-o", corpus[0] / "out") == 2
    assert "lies in" in capsys.readouterr().err
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "mine.txt").write_text("mine")
    assert speech(corpus[0], "-o", strange) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    assert speech(corpus[0] / "radio", "-o", copy, "--min-seconds", "2", "--workers", "0", "--overwrite", "--similar", "0") == 0
    entries = lines(copy / "manifest.jsonl")
    assert entries and all(entry["duration"] >= 2 and not entry["similar"] and "text" not in entry for entry in entries)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*.flac")} == {entry["file"] for entry in entries}


def test_damaged_and_silent_recordings_are_named(tmp_path, capsys):
    recordings, out = tmp_path / "recordings", tmp_path / "out"
    synthetic.write(recordings / "ada/a.wav", synthetic.recording([synthetic.voice("low", 1)], 2, 1)[0], RATE)
    synthetic.write(recordings / "still.wav", np.zeros(RATE))
    (recordings / "broken.wav").write_bytes(b"RIFF of no use")
    assert speech(recordings, "-o", out, *SHORT, "--strict") == 1
    report = json.loads((out / "report.json").read_text())
    assert report["without_speech"] == ["still"] and len(report["damaged"]) == 1 and "broken.wav" in report["damaged"][0]
    assert "files cannot be used" in capsys.readouterr().out
    assert {entry["speaker"] for entry in lines(out / "manifest.jsonl")} == {"ada"}
    only = tmp_path / "only"
    shutil.copytree(recordings / "ada", only)
    assert speech(only, "-o", tmp_path / "by_file", *SHORT, "--speaker", "file", "--rate", "16000", "--format", "wav") == 0
    entries = lines(tmp_path / "by_file/manifest.jsonl")
    assert {entry["speaker"] for entry in entries} == {"a"}
    assert soundfile.info(str(tmp_path / "by_file" / entries[0]["file"])).samplerate == 16000


def test_a_trained_classifier_decides(corpus, tmp_path, capsys):
    """A network whose weights are set so that all is of kind 1."""
    from safetensors.torch import save_file

    from dlas.archs import create_network
    from dlas.inference.model import OPTIONS_KEY

    options = {"which_model": "mini_audio_encoder_classifier", "classes": 3, "embedding_dim": 8, "base_channels": 4, "depth": 2}
    options |= {"resnet_blocks": 1, "attn_blocks": 1, "num_attn_heads": 2}
    network = create_network(options)
    torch.nn.init.zeros_(network.head.weight)
    network.head.bias.data = torch.tensor([0.0, 5.0, 0.0])
    file = tmp_path / "kinds.safetensors"
    save_file(network.state_dict(), file, metadata={OPTIONS_KEY: json.dumps(options)})
    radio = corpus[0] / "radio"
    assert speech(radio, "-o", tmp_path / "none", *SHORT, "--classifier", file) == 1
    assert {reason for part in lines(tmp_path / "none/rejected.jsonl") for reason in part["rejected"]} == {"classified"}
    assert all(part["label"] == 1 for part in lines(tmp_path / "none/rejected.jsonl"))
    parallel = ("--min-seconds", "1", "--workers", "2")
    assert speech(radio, "-o", tmp_path / "all", *parallel, "--classifier", file, "--keep-label", 1) == 0
    assert len(lines(tmp_path / "all/manifest.jsonl")) == 4 * COUNT
    capsys.readouterr()
    network.head.bias.data = torch.tensor([5.0, 0.0, 0.0])
    save_file(network.state_dict(), file, metadata={OPTIONS_KEY: json.dumps(options)})
    assert speech(radio, "-o", tmp_path / "all", *SHORT, "--classifier", file, "--keep-label", 1) == 2
    assert "classifier_weights was" in capsys.readouterr().err
    assert speech(radio, "-o", tmp_path / "all", *SHORT, "--keep-label", 1) == 2


def test_functions_are_checked(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def transcribe(clips, rate): return ['one']\ndef embed(clips, rate, width): return [[0.0] * int(width)] * len(clips)"
    )
    clip = np.zeros(10, np.float32)
    assert ClipFunction(RECOGNISER, str(file))([clip], 10) == ["one"]
    assert ClipFunction(ENCODER, str(file), (("width", "2"),))([clip, clip], 10) == [[0.0, 0.0]] * 2
    with pytest.raises(DataError, match=r"mine.py: gave list .* for 2 clips; expected a list of texts"):
        ClipFunction(RECOGNISER, str(file))([clip, clip], 10)
    with pytest.raises(ConfigurationError, match="width"):
        ClipFunction(ENCODER, str(file)).check()
    with pytest.raises(ConfigurationError, match="no function 'other"):
        ClipFunction(ENCODER, f"{file}:other").check()
    with pytest.raises(ConfigurationError, match="no such Python file"):
        ClipFunction(ENCODER, "nowhere.py").check()


def test_options_that_contradict_are_refused(corpus, tmp_path, capsys):
    for options, words in (
        (("--min-seconds", "5", "--max-seconds", "5"), "--min-seconds must be less"),
        (("--keep-silence", "0.5"), "at most half of --min-silence"),
        (("--rate", "16000", "--min-bandwidth", "9000"), "nothing above 8000 Hz"),
        (("--recogniser-option", "a=b"), "name the function with --recogniser"),
        (("--recogniser", "nowhere.py"), "no such Python file"),
    ):
        assert speech(corpus[0], "-o", tmp_path / "out", *options) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
