"""A run goes on with another number of processes, on the samples that come next, and by itself when torchrun starts it anew."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from test_several_processes import RESUMED, alone, assert_same_figures, torchrun
from torch.distributed import HashStore

from dlas.engine.distributed.lives import agree
from dlas.errors import TrainingError
from runs import checkpoint_tensors, rows

BATCH = 8


def seen(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """Position and checksum of the samples of each iteration: the ranks' parts, in order of rank."""
    found: dict[int, list[tuple[int, int]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for step, positions, sums in map(json.loads, path.read_text().splitlines()):
            found.setdefault(step, []).extend(zip(positions, sums, strict=True))
    return found


def watched(folder: Path, dies_at: int = -1) -> str:
    folder.mkdir()
    places = f"{{type: toy_places, in: hq, out: seen, train: true, folder: {folder}, dies_at: {dies_at}}}"
    return f"steps.generator.injectors.places={places}"


def assert_same_end(one: Path, other: Path) -> None:
    tensors, others = (checkpoint_tensors(each / "checkpoints/8") for each in (one, other))
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        if not key.endswith("calls"):  # counts forward passes
            assert (value.double() - others[key].double()).abs().max() < 2e-6, key
    assert_same_figures(rows(one, "train")[-1], rows(other, "train")[-1])


@pytest.mark.slow
def test_two_then_four_processes_then_one_take_the_samples_that_one_takes(tmp_path):
    text, *overrides = RESUMED
    whole = alone(tmp_path, text, *overrides, watched(tmp_path / "whole"), "name=all")
    expected = seen(tmp_path / "whole")
    positions = [[position for position, _ in expected[step]] for step in sorted(expected)]
    assert positions == [list(range(BATCH * step, BATCH * (step + 1))) for step in range(8)]

    found: dict[int, list[tuple[int, int]]] = {}
    for processes, until in ((2, 3), (4, 5), (1, 8)):
        places = tmp_path / f"by{processes}"
        job = (text, *overrides, watched(places), f"train.niter={until}")
        if processes == 1:
            alone(tmp_path, *job, "name=parts")
        else:
            done = torchrun(tmp_path, {"parts": job}, processes)
            assert done.returncode == 0, done.stderr
            assert len(list(places.glob("*.jsonl"))) == processes
        now = seen(places)
        assert not now.keys() & found.keys(), "an iteration was repeated"
        found |= now
    assert found == expected
    assert_same_end(whole, tmp_path / "parts")


def test_a_group_that_torchrun_starts_again_goes_on_from_the_last_checkpoint(tmp_path):
    text, *overrides = RESUMED
    whole = alone(tmp_path, text, *overrides, watched(tmp_path / "whole"), "name=all")
    job = (text, *overrides, watched(tmp_path / "places", dies_at=4))
    done = torchrun(tmp_path, {"restarted": job}, 2, "--max-restarts=1")
    assert done.returncode == 0, done.stderr
    assert "the toy has died in its first life" in done.stderr
    steps = [json.loads(line)[0] for line in (tmp_path / "places/1-2.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]  # a checkpoint is written after each third iteration
    found, expected = seen(tmp_path / "places"), seen(tmp_path / "whole")
    assert {step: sorted(set(samples)) for step, samples in found.items()} == expected
    assert_same_end(whole, tmp_path / "restarted")


def lives(store: HashStore, ranks: range, world_size: int) -> list[str]:
    """What the processes of one life agree on, rank 0 first to look."""
    found: dict[int, str] = {}

    def join(rank: int) -> None:
        found[rank] = agree(store, rank, world_size, timedelta(seconds=20))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in ranks]


def test_a_life_agrees_on_a_name_of_its_own_whatever_earlier_ones_left():
    store = HashStore()
    store.set("question/1", "asked by one that died before it was answered")
    first = lives(store, range(3), 3)
    second = lives(store, range(3), 3)
    fewer = lives(store, range(2), 2)
    assert [len(set(each)) for each in (first, second, fewer)] == [1, 1, 1]
    assert len({first[0], second[0], fewer[0]}) == 3


def test_processes_that_do_not_come_are_named():
    store = HashStore()
    store.set("question/1", "left by an earlier life")
    with pytest.raises(TrainingError, match="1 of 2 processes did not come within 0 s, the first of them rank 1"):
        agree(store, 0, 2, timedelta(seconds=0.1))
