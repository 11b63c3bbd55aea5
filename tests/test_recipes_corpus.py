"""The script that makes a small corpus of speech out of Debian's packages."""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import synthetic_speech as synthetic
from dlas.data.audio.manifests import read_utterances

SCRIPT = Path(__file__).parents[1] / "recipes/tortoise/make_corpus.py"
TEXTS = """; Core sounds

activated: Activated.
beep: [this is a simple beep tone]
digits/1: one
half: Press [beep] now
long: The  text: it has a colon, and is heard
missing: There is no recording of this
short: Hm.
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def tree(tmp_path):
    """Unpacked packages."""
    root = tmp_path / "tree"
    document = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    document.parent.mkdir(parents=True)
    document.write_bytes(gzip.compress(TEXTS.encode()))
    for name in ("activated", "beep", "digits/1", "half", "long", "short"):
        file = root / f"usr/share/asterisk/sounds/en_US_f_Allison/{name}.g722"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    return root


def test_clips_are_those_with_words_and_a_recording(script, tree):
    clips = {clip.name: clip.text for clip in script.clips_of(tree, "en")}
    assert clips == {
        "activated": "Activated.", "digits-1": "one", "long": "The text: it has a colon, and is heard", "short": "Hm."
    }  # fmt: skip
    with pytest.raises(script.PreparationError, match=r"core-sounds-fr\.txt\.gz|core-sounds-fr\.txt"):
        list(script.clips_of(tree, "fr"))


def test_lists_name_what_is_long_enough(script, tree, tmp_path, monkeypatch):
    def decode(clips, folder):
        files = {clip.name: folder / f"{clip.name}.flac" for clip in clips}
        for name, file in files.items():
            synthetic.write(file, np.zeros(8000 if name == "short" else 24000), 16000)
        return files

    monkeypatch.setattr(script, "decode", decode)
    monkeypatch.setattr(script, "HELD_OUT", 3)
    out = tmp_path / "out"
    assert script.write(tree, out, ["en"]) == {"train en": (2, 3.0), "valid en": (1, 1.5)}
    entries = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert entries[0] == {"file": "clips/en/activated.flac", "text": "Activated.", "speaker": "en", "duration": 1.5}
    valid = read_utterances(out / "valid.jsonl", "jsonl")
    assert [(each.path.name, each.speaker) for each in valid] == [("long.flac", "en")] and valid[0].path.is_file()
    assert not (out / "clips/en/short.flac").exists()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_recordings_are_decoded(script, tmp_path):
    import soundfile

    time = np.arange(32000) / 16000
    synthetic.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 16000)
    coded = tmp_path / "tone.g722"
    subprocess.run(["ffmpeg", "-v", "error", "-i", tmp_path / "tone.wav", "-f", "g722", coded], check=True)
    clips = [script.Clip(name, "tone", "en", coded) for name in ("a", "b", "c")]
    files = script.decode(clips, tmp_path / "clips")
    assert sorted(files) == ["a", "b", "c"]
    for file in files.values():
        sound, rate = soundfile.read(file)
        assert rate == 16000 and abs(len(sound) - 32000) < 100
        assert np.abs(np.fft.rfft(sound[:16000])).argmax() == 440
    coded.write_bytes(b"")
    with pytest.raises(script.PreparationError, match="ffmpeg failed"):
        script.decode([script.Clip("d", "nothing", "en", tmp_path / "nowhere.g722")], tmp_path / "clips")


def test_what_is_missing_is_told(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda program: None)
    assert script.main([str(tmp_path / "out"), "--languages", "fr"]) == 1
    error = capsys.readouterr().err
    assert "asterisk-core-sounds-fr, asterisk-core-sounds-fr-g722 from https" in error and "--debs" in error
    with pytest.raises(script.PreparationError, match="apt-get install ffmpeg"):
        script.decode([], tmp_path / "clips")
    (tmp_path / "out/mine").mkdir(parents=True)
    assert script.main([str(tmp_path / "out")]) == 1
    assert "is not empty" in capsys.readouterr().err
