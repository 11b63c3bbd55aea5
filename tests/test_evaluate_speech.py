"""`dlas evaluate speech`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import synthetic_speech as synthetic
from dlas.cli.main import main

FUNCTIONS = '''
"""A recogniser that hears how loud a clip is, and an encoder of what is in it."""
import numpy as np

WORDS = ["zero", "one", "two", "three", "four", "five"]

def transcribe(clips, rate):
    return [" ".join(WORDS[round(float(np.abs(clip).max()) * 10)] for _ in range(2)) + "!" for clip in clips]

def embed(clips, rate):
    return [[float(clip.mean()), float(np.abs(clip).max())] for clip in clips]

def score(clips, rate):
    return [len(clip) / rate for clip in clips]
'''


@pytest.fixture
def clips(tmp_path):
    """Square waves of known peaks, and their mirror images, whose mean has the other sign."""
    entries = []
    for number, (peak, offset, text, speaker) in enumerate(
        ((0.1, 0.1, "One one", "a"), (0.2, 0.2, "two three", "a"), (0.5, -0.5, "five. Five?", "b"))
    ):
        sound = np.full(1000, offset)
        assert abs(offset) == peak
        synthetic.write(tmp_path / f"{speaker}/{number}.wav", sound, 1000)
        entries.append({"file": f"{speaker}/{number}.wav", "text": text, "speaker": speaker})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return tmp_path


def evaluate(clips: Path, *arguments: object) -> int:
    return main(
        ["evaluate", "speech", str(clips / "list.jsonl"), "-o", str(clips / "out"), "--rate", "1000", *map(str, arguments)]
    )


def test_all_figures(clips, capsys):
    function, reference = clips / "functions.py", clips / "list.jsonl"
    named = [word for kind in ("recogniser", "encoder", "judge", "features") for word in (f"--{kind}", function)]
    assert evaluate(clips, *named, "--reference", reference) == 0
    figures = json.loads((clips / "out/figures.json").read_text())
    assert figures["word_error_rate"] == pytest.approx(1 / 6) and figures["words"] == 6
    assert figures["character_error_rate"] == pytest.approx(4 / 25)  # `three` and `two`
    assert figures["score"] == pytest.approx(1.0)
    assert figures["speaker_similarity"] == pytest.approx(1.0, abs=1e-5)  # the means of each speaker's own clips
    assert figures["frechet_distance"] == pytest.approx(0.0, abs=1e-6)
    rows = list(csv.DictReader((clips / "out/clips.csv").open()))
    assert [float(row["word_error_rate"]) for row in rows] == [0.0, 0.5, 0.0]
    assert rows[1]["heard"] == "two two!" and float(rows[0]["score"]) == 1.0
    assert "word_error_rate       0.1667" in capsys.readouterr().out


def test_other_voices_and_distributions_are_told(clips):
    entries = [json.loads(line) for line in (clips / "list.jsonl").read_text().splitlines()]
    swapped = {"a": "b", "b": "a"}
    (clips / "other.jsonl").write_text("".join(json.dumps(e | {"speaker": swapped[e["speaker"]]}) + "\n" for e in entries))
    function = clips / "functions.py"
    assert evaluate(clips, "--encoder", function, "--features", function, "--reference", clips / "other.jsonl") == 0
    figures = json.loads((clips / "out/figures.json").read_text())
    assert figures["speaker_similarity"] == pytest.approx(0.0, abs=1e-4)  # (1, 1) and (-1, 1)
    synthetic.write(clips / "far/0.wav", np.full(1000, 0.4), 1000)
    synthetic.write(clips / "far/1.wav", np.full(1000, 0.5), 1000)
    (clips / "far.jsonl").write_text("".join(f'{{"file": "far/{n}.wav", "text": ""}}\n' for n in (0, 1)))
    assert evaluate(clips, "--features", function, "--reference", clips / "far.jsonl") == 0
    assert json.loads((clips / "out/figures.json").read_text())["frechet_distance"] > 0.1


def test_errors_say_what_to_do(clips, capsys):
    function = clips / "functions.py"
    for options, words in (
        ((), "nothing to measure"),
        (("--encoder", function), "name its list with --reference"),
        (("--recogniser", f"{function}:embed"), "expected a list of texts"),
    ):
        assert evaluate(clips, *options) in (1, 2)
        assert words in capsys.readouterr().err
    (clips / "one.jsonl").write_text('{"file": "a/0.wav", "text": "", "speaker": "a"}\n')
    assert evaluate(clips, "--encoder", function, "--reference", clips / "one.jsonl") == 1
    assert "no clips of b; its speakers are a" in capsys.readouterr().err
    assert evaluate(clips, "--features", function, "--reference", clips / "one.jsonl") == 1
    assert "two clips of each kind" in capsys.readouterr().err
    (clips / "a/0.wav").unlink()
    assert evaluate(clips, "--recogniser", function) == 1
    assert "no such file" in capsys.readouterr().err
