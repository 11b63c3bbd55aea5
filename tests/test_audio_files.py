"""Sound files: what is read, what is refused with which words, loudness and silence."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import soundfile
import torch

from dlas.data.audio import files
from dlas.data.audio.files import list_sounds, read_part, read_sound
from dlas.data.audio.levels import loudness, to_loudness, trim_silence
from dlas.data.base import BadSample
from dlas.errors import DataError, MissingPackageError
from spoken import tone

RATE = 22050


@pytest.mark.parametrize(("ending", "error"), [("wav", 3.1e-5), ("flac", 3.1e-5), ("ogg", 0.05), ("mp3", 0.05)])
def test_formats_are_read(tmp_path, ending, error):
    wave = tone(1.0)
    soundfile.write(tmp_path / f"a.{ending}", wave, RATE)
    sound = read_sound(tmp_path / f"a.{ending}", RATE)
    assert sound.dtype == torch.float32
    assert sound.shape == (RATE,)
    assert (sound - torch.from_numpy(wave)).abs().max() < error


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.5), tone(0.5, pitch=330)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    assert torch.equal(read_sound(tmp_path / "a.wav", RATE), torch.from_numpy((left + right) / 2))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_other_rates_are_brought_to_the_one_wanted(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate), rate, subtype="FLOAT")
    sound = read_sound(tmp_path / "a.wav", RATE)
    assert sound.shape == (RATE,)
    inner = slice(500, -500)
    assert (sound - torch.from_numpy(tone(1.0)))[inner].abs().max() < 2e-3


def test_parts_lie_where_they_are_asked_for(tmp_path):
    wave = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    for place, start in ((0.0, 0), (0.5, 450), (1.0, 900)):
        assert torch.equal(read_part(tmp_path / "a.wav", RATE, 100, place), torch.from_numpy(wave[start : start + 100]))
    assert len(read_part(tmp_path / "a.wav", RATE, 2000, 0.7)) == 1000
    assert len(read_part(tmp_path / "a.wav", 44100, 100, 0.7)) == 100


def broken(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "empty":
        path.touch()
    elif kind == "silent_header":
        soundfile.write(path, np.zeros(0, np.float32), RATE)
    elif kind == "text":
        path.write_text("not sound at all, but long enough to have a header\n" * 3)
    elif kind == "nan":
        soundfile.write(path, np.array([0, np.nan, 0], np.float32), RATE, subtype="FLOAT")
    elif kind == "integers":
        soundfile.write(path, np.array([0, 12000, -9000], np.float32), RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "there is no such file"),
        ("empty", r"is empty \(0 bytes\)"),
        ("silent_header", "holds no samples"),
        ("text", r"cannot be decoded \(.*\); expected wav, flac, ogg or mp3"),
        ("nan", "has samples that are not finite"),
        ("integers", "reaches 1.2e.04, where sound lies within"),
    ],
)
@pytest.mark.parametrize("read", [lambda p: read_sound(p, RATE), lambda p: read_part(p, RATE, 2, 0.0)], ids=["all", "part"])
def test_what_is_wrong_with_a_file_is_said(tmp_path, kind, words, read):
    path = broken(tmp_path, kind)
    with pytest.raises(BadSample, match=words) as caught:
        read(path)
    assert caught.value.path == str(path)


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(2.0), RATE)
    (tmp_path / "b.flac").write_bytes((tmp_path / "a.flac").read_bytes()[:9000])
    with pytest.raises(BadSample, match=r"ends after|cannot be decoded"):
        read_sound(tmp_path / "b.flac", RATE)


def test_clipped_and_narrow_files_are_told_of_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(files, "_told", set())
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.clip(4 * tone(1.0), -1, 1), RATE)
        soundfile.write(tmp_path / f"{name}8.wav", tone(0.5, 8000), 8000)
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b", "a8", "b8"):
            assert read_sound(tmp_path / f"{name}.wav", RATE).abs().max() <= 1
    clipped, narrow = caplog.messages
    share = float(clipped.split("a.wav ")[1].split("%")[0])
    assert 5 < share < 60
    assert "above 4000 Hz it holds nothing" in narrow


def test_soundfile_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'dlas\[audio\]'"):
        read_sound(tmp_path / "a.wav", RATE)


def test_folders_without_sound_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no sound files; expected some that end in \.wav"):
        list_sounds(tmp_path)
    with pytest.raises(DataError, match="no folder at"):
        list_sounds(tmp_path / "other")


# ---------------------------------------------------------------------------------------------------- levels


def test_loudness_of_known_sounds():
    time = torch.arange(RATE) / RATE
    sine = (2 * torch.pi * 100 * time).sin()
    assert loudness(sine) == pytest.approx(-3.0103, abs=1e-3)
    assert loudness(0.1 * sine) == pytest.approx(-23.0103, abs=1e-3)
    assert loudness(torch.zeros(5)) == float("-inf")
    assert loudness(to_loudness(0.7 * sine, -20)) == pytest.approx(-20, abs=1e-3)
    assert to_loudness(sine, 3.0).abs().max() == pytest.approx(0.99, abs=1e-4)
    assert torch.equal(to_loudness(torch.zeros(5), -20), torch.zeros(5))


def test_silence_is_cut_off_both_ends_and_not_in_between():
    loud, quiet = 0.3 * torch.ones(4410), torch.zeros(22050)
    sound = torch.cat((quiet, loud, quiet, loud, quiet))
    for margin in (0.0, 0.1):
        kept = trim_silence(sound, RATE, margin=margin)
        assert len(kept) == pytest.approx(4410 * 2 + 22050 + 2 * margin * RATE, abs=2 * 441)
        assert kept.square().sum() == pytest.approx(float(sound.square().sum()))
    assert len(trim_silence(quiet, RATE)) == 0
    assert torch.equal(trim_silence(loud, RATE), loud)
