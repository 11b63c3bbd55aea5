"""Squares of the built-in photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dlas.data.base import Request, create_dataset
from dlas.data.images import patches
from dlas.data.images.files import read_image
from dlas.data.images.photographs import TRAIN, locate
from dlas.errors import ConfigurationError


def squares(phase="train", **options):
    return create_dataset({"mode": "builtin_patches", **options}, phase=phase, name=phase)


def sample(data, index, position=0):
    return data[Request(index=index, position=position, seed=0)]


def test_squares_are_split_so_that_equal_ones_stay_together():
    train, val = squares(target_size=32), squares("val", target_size=32)
    assert 0.08 < len(val) / (len(train) + len(val)) < 0.13
    pictures = [{each.tobytes() for each in data.pixels} for data in (train, val)]
    assert pictures[0].isdisjoint(pictures[1])
    names = [*train.names, *val.names]
    assert len(set(names)) == len(names)
    assert {name.rpartition("_")[0] for name in val.names} == {name.rpartition("_")[0] for name in train.names}


def test_a_square_lies_where_its_name_says():
    train = squares(target_size=16)
    stem, _, number = train.names[200].rpartition("_")
    (path,) = [locate(each) for each in TRAIN if Path(each.file).stem == stem]
    image = read_image(path)
    row, column = divmod(int(number), image.shape[1] // 16)
    np.testing.assert_array_equal(train.pixels[200], image[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16])


def test_they_are_mirrored_in_training_alone():
    train, still, val = squares(target_size=32), squares(target_size=32, use_flip=False), squares("val", target_size=32)
    plain = sample(still, 7)["hq"]
    seen = [sample(train, 7, position)["hq"] for position in range(16)]
    assert plain.shape == (3, 32, 32)
    assert 0 <= plain.min() < plain.max() <= 1
    assert {bool(each.equal(plain)) for each in seen} == {True, False}
    assert all(each.equal(plain) or each.equal(plain.flip(-1)) for each in seen)
    assert all(torch.equal(sample(val, 7, position)["hq"], sample(val, 7)["hq"]) for position in range(16))


def test_a_square_larger_than_a_photograph_is_refused():
    with pytest.raises(ConfigurationError, match="target_size 301 is more than the 300 pixels"):
        squares(target_size=301)
    with pytest.raises(ConfigurationError, match="target_size 301"):
        patches.BuiltinPatches.sample_spec("train", {"target_size": 301})
    assert patches.BuiltinPatches.sample_spec("train", {"target_size": 8})["hq"].shape == (3, 8, 8)
