"""Batches are the same for any number of workers and any starting point; every failure names its file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from dlas.data.base import BadSample, Dataset, create_dataset, stack_samples
from dlas.data.loader import build_loader, evaluation_items
from dlas.data.sampler import SampleOrder
from dlas.errors import ConfigurationError, DataError, MissingPackageError
from dlas.registry import DATASETS


class Numbers(Dataset):
    """Tensors of several ranks, numbers and text, some of it random; `bad` files cannot be read."""

    def __init__(self, length=11, bad=(), on_bad_file="error"):
        self.length = length
        self.bad = frozenset(bad)
        self.on_bad_file = on_bad_file

    def __len__(self):
        return self.length

    def source(self, index):
        return f"file{index}.dat"

    def __getitem__(self, request):
        if request.index in self.bad:
            raise BadSample(self.source(request.index), "is made of cheese; expected numbers; remove it")
        return {
            "index": request.index,
            "loud": request.index % 2 == 0,
            "scalar": torch.tensor(0.5 * request.index),
            "noise": torch.from_numpy(request.rng().standard_normal((2, 3, 4))),
            "text": f"item {request.index}",
        }


class Failing(Numbers):
    """Has a fault in its own code at index 4."""

    def __getitem__(self, request):
        if request.index == 4:
            raise ZeroDivisionError("oops")
        return super().__getitem__(request)


class Deadly(Numbers):
    """Index 5 kills the process that reads it, as a system without memory does."""

    def __getitem__(self, request):
        if request.index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(request)


def load(dataset, count, *, n_workers=0, start_position=0, batch_size=4, seed=0, shuffle=True, **options):
    order = SampleOrder(len(dataset), seed, shuffle)
    with build_loader(
        dataset, batch_size=batch_size, order=order, start_position=start_position, n_workers=n_workers, **options
    ) as loader:
        return list(islice(loader, count)), loader.bad_files


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], torch.Tensor):
                assert a[key].dtype == b[key].dtype
                assert torch.equal(a[key], b[key]), key
            else:
                assert a[key] == b[key], key


def test_a_batch_stacks_tensors_and_numbers_and_lists_the_rest():
    (batch,), _ = load(Numbers(), 1, shuffle=False)
    assert batch["noise"].shape == (4, 2, 3, 4)
    assert batch["scalar"].tolist() == [0.0, 0.5, 1.0, 1.5]
    assert batch["index"].dtype == torch.int64 and batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["loud"].dtype == torch.bool
    assert batch["text"] == ["item 0", "item 1", "item 2", "item 3"]
    assert batch["positions"] == [0, 1, 2, 3]


def test_batches_do_not_depend_on_the_workers():
    alone, _ = load(Numbers(), 7)
    for n_workers in (1, 2):
        crew, _ = load(Numbers(), 7, n_workers=n_workers)
        assert_same(crew, alone)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_start_in_the_middle_gives_the_tail(n_workers):
    whole, _ = load(Numbers(), 8)
    tail, _ = load(Numbers(), 3, start_position=5 * 4, n_workers=n_workers)
    assert_same(tail, whole[5:])


def test_ranks_share_the_global_batch():
    whole, _ = load(Numbers(), 3)
    parts = [load(Numbers(), 3, world_size=2, rank=rank)[0] for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([first["noise"], second["noise"]]), batch["noise"])
        assert first["positions"] + second["positions"] == batch["positions"]


def test_the_runs_own_randomness_is_left_alone():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # it is the global state that must not move
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load(Numbers(), 2, n_workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_bad_file_ends_the_run_by_name(n_workers):
    with pytest.raises(BadSample, match=r"file2.dat: is made of cheese; .*`on_bad_file: skip`") as caught:
        load(Numbers(bad=[2]), 4, n_workers=n_workers)
    assert caught.value.path == "file2.dat"


def test_skipping_takes_the_next_files_and_lists_the_bad_ones():
    bad = [2, 3, 10]
    dataset = Numbers(bad=bad, on_bad_file="skip")
    alone, bad_files = load(dataset, 6, shuffle=False)
    assert bad_files.keys() == {"file2.dat", "file3.dat", "file10.dat"}
    assert bad_files["file2.dat"].startswith("is made of cheese")
    assert alone[0]["index"].tolist() == [0, 1, 4, 4]  # 2 and 3 become 4
    assert alone[2]["index"].tolist() == [8, 9, 0, 0]  # 10 wraps round to 0
    good, _ = load(Numbers(), 6, shuffle=False)
    assert torch.equal(alone[0]["noise"], good[0]["noise"])  # the randomness is that of the position

    crew, also_bad = load(dataset, 6, shuffle=False, n_workers=2)
    assert_same(crew, alone)
    assert also_bad == bad_files


@pytest.mark.parametrize("n_workers", [0, 1])
def test_nothing_but_bad_files_is_an_error(n_workers):
    with pytest.raises(DataError, match=r"all 3 samples of the dataset are unusable, for example file\d.dat: is made"):
        load(Numbers(3, bad=range(3), on_bad_file="skip"), 1, n_workers=n_workers)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_fault_in_a_dataset_keeps_its_kind_and_names_the_file(n_workers):
    with pytest.raises(ZeroDivisionError) as caught:
        load(Failing(), 3, n_workers=n_workers, shuffle=False)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "oops" in told
    assert "while reading file4.dat" in told


def test_a_killed_worker_is_reported_with_its_file():
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(DataError, match=r"1 of 1 data worker processes died; last read: file5.dat.*memory"):
        load(Deadly(), 4, n_workers=1, shuffle=False, prefetch_factor=1)
    assert signal.getsignal(signal.SIGCHLD) == before


def test_closing_ends_the_workers():
    dataset = Numbers()
    loader = build_loader(dataset, batch_size=2, order=SampleOrder(len(dataset), 0), n_workers=2)
    next(loader)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert multiprocessing.active_children() == []
    assert list(loader) == []


def test_a_program_that_just_ends_is_silent():
    program = """
        from dlas.data.loader import build_loader
        from dlas.data.sampler import SampleOrder
        from test_data_loader import Numbers

        loader = build_loader(Numbers(), batch_size=2, order=SampleOrder(11, 0), n_workers=2)
        next(loader)
    """
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent / 'codes'}{os.pathsep}{here}"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_samples_that_do_not_fit_together_are_named():
    a, b = {"x": torch.zeros(2, 3)}, {"x": torch.zeros(2, 4)}
    with pytest.raises(DataError, match=r"'x' cannot be stacked.*\(2, 3\) from one.png.*\(2, 4\) from two.png"):
        stack_samples([a, b], ["one.png", "two.png"])
    with pytest.raises(DataError, match=r"float32 of shape \(2, 3\) from one.png.*float64 .* from two.png"):
        stack_samples([a, {"x": torch.zeros(2, 3, dtype=torch.float64)}], ["one.png", "two.png"])
    with pytest.raises(DataError, match=r"one.png has \['x'\], two.png has \['y'\]"):
        stack_samples([a, {"y": torch.zeros(2, 3)}], ["one.png", "two.png"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n_workers", [0, 2])
def test_pinning_changes_where_a_batch_lies_and_nothing_else(n_workers):
    pinned, _ = load(Numbers(), 3, n_workers=n_workers, pin_memory=True)
    plain, _ = load(Numbers(), 3, pin_memory=False)
    assert all(batch["noise"].is_pinned() for batch in pinned)
    assert not plain[0]["noise"].is_pinned()
    assert_same(pinned, plain)


def test_a_dataset_may_put_its_batches_together_itself():
    class Ragged(Numbers):
        def __getitem__(self, request):
            return {"wave": torch.ones(request.index + 1)}

        def collate(self, samples, sources):
            waves = [sample["wave"] for sample in samples]
            return {
                "wave": torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
                "length": torch.tensor(list(map(len, waves))),
            }

    (batch,), _ = load(Ragged(), 1, shuffle=False)
    assert batch["wave"].shape == (4, 4)
    assert batch["length"].tolist() == [1, 2, 3, 4]


def test_the_key_of_the_loader_is_taken():
    class Greedy(Numbers):
        def __getitem__(self, request):
            return {"positions": 1}

    with pytest.raises(ValueError, match="Greedy gives a key 'positions'"):
        load(Greedy(), 1)


def test_evaluation_takes_every_sample_once_in_order():
    items = list(evaluation_items(Numbers()))
    assert [item["index"].tolist() for item in items] == [[index] for index in range(11)]
    assert items[3]["noise"].shape == (1, 2, 3, 4)
    assert items[3]["text"] == ["item 3"]
    assert items[3]["positions"] == [3]
    assert_same(list(evaluation_items(Numbers())), items)


def test_evaluation_leaves_bad_files_out():
    bad_files = {}
    items = list(evaluation_items(Numbers(5, bad=[1, 4], on_bad_file="skip"), bad_files))
    assert [item["index"].item() for item in items] == [0, 2, 3]
    assert bad_files.keys() == {"file1.dat", "file4.dat"}
    with pytest.raises(BadSample, match=r"file1.dat: is made of cheese"):
        list(evaluation_items(Numbers(5, bad=[1, 4])))
    with pytest.raises(DataError, match="all 2 samples"):
        list(evaluation_items(Numbers(2, bad=[0, 1], on_bad_file="skip")))


def test_a_bad_sample_survives_pickling():
    error = pickle.loads(pickle.dumps(BadSample("a/b.png", "is empty")))
    assert (error.path, error.reason, str(error)) == ("a/b.png", "is empty", "a/b.png: is empty")


@pytest.fixture
def registered(monkeypatch):
    """A dataset mode that is gone after the test."""
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS.entries()))
    monkeypatch.setattr(DATASETS, "_objects", {})

    @DATASETS.register("only_numbers")
    def numbers(phase, /, *, length: int, problem: str | None = None):
        if problem == "package":
            raise MissingPackageError("cheese", "this dataset")
        return Numbers(length if phase == "train" else 1)


@pytest.mark.usefixtures("registered")
def test_options_of_the_loader_do_not_reach_the_dataset():
    options = {"mode": "only_numbers", "name": "x", "batch_size": 4, "n_workers": 2, "pin_memory": True, "prefetch_factor": 3}
    assert len(create_dataset({**options, "length": 7}, phase="train", name="train")) == 7
    assert len(create_dataset({**options, "length": 7}, phase="val", name="val")) == 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"length": 3}, ConfigurationError, "datasets.train has no `mode`; expected one of: .*builtin_photos"),
        ({"mode": "builtin_photo"}, ConfigurationError, "datasets.train: no dataset is called 'builtin_photo'; did you mean"),
        ({"mode": "only_numbers", "lenght": 3}, ConfigurationError, "datasets.train: .*no option 'lenght'.*'length'"),
        ({"mode": "only_numbers", "length": 0}, DataError, r"datasets.train \(mode only_numbers, phase train\): .*no samples"),
        ({"mode": "only_numbers", "length": 1, "problem": "package"}, MissingPackageError, "pip install cheese"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_what_is_wrong_with_an_entry_is_said_with_its_name(options, kind, message):
    with pytest.raises(kind, match=message):
        create_dataset(options, phase="train", name="train")
