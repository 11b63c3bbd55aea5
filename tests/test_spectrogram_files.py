"""The data set of spectrograms that are files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlas.data.audio.spectrograms import PreprocessedMel
from dlas.data.base import BadSample, Request
from dlas.errors import DataError


def mel(frames, bins=3):
    return np.arange(bins * frames, dtype=np.float32).reshape(bins, frames)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "a.npz", mel(4))
    np.savez(tmp_path / "b/long.npz", mel=mel(20))
    return tmp_path


def test_spectrograms_are_of_one_length_with_a_mask(folder):
    data = PreprocessedMel("val", path=str(folder), pad_to_samples=6)
    short, long = (data[Request(index, index, 0)] for index in range(2))
    assert short["mel"].equal(torch.nn.functional.pad(torch.from_numpy(mel(4)), (0, 2)))
    assert short["mask"].tolist() == [0, 0, 0, 0, 1, 1]
    assert (short["mel_lengths"], short["mask_lengths"]) == (4, 6)
    assert long["mel"].equal(torch.from_numpy(mel(20)[:, :6]))
    assert long["mask"].tolist() == [0] * 6
    assert data.source(1) == long["path"] == str(folder / "b/long.npz")


def test_parts_are_drawn_in_training(folder):
    data = PreprocessedMel("train", path=str(folder), pad_to_samples=6)
    starts = {int(data[Request(1, position, 0)]["mel"][0, 0]) for position in range(200)}
    assert starts == set(range(15))
    assert data[Request(1, 7, 0)]["mel"].equal(data[Request(1, 7, 0)]["mel"])


def test_arrays_with_an_axis_more(tmp_path):
    np.savez(tmp_path / "a.npz", mel(4)[None])
    assert PreprocessedMel("val", path=str(tmp_path), should_squeeze=True)[Request(0, 0, 0)]["mel"].shape == (3, 10336)
    with pytest.raises(BadSample, match=r"shape \(1, 3, 4\); expected \(bins, frames\); write should_squeeze: true"):
        PreprocessedMel("val", path=str(tmp_path))[Request(0, 0, 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut off", "cannot be read"),
        ({"a": mel(2), "b": mel(2)}, "cannot be read"),
        ({"a": np.array([{}], dtype=object)}, "cannot be read"),
        ({"a": np.full((2, 2), np.nan)}, "not finite"),
        ({"a": np.zeros((3, 0))}, r"shape \(3, 0\)"),
    ],
)
def test_files_with_faults(content, message, tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(BadSample, match=message):
        PreprocessedMel("val", path=str(tmp_path))[Request(0, 0, 0)]


def test_folders_without_files(tmp_path):
    with pytest.raises(DataError, match=r"holds no .npz files"):
        PreprocessedMel("val", path=str(tmp_path))
    with pytest.raises(DataError, match="no folder at"):
        PreprocessedMel("val", path=str(tmp_path / "gone"))
