"""Small parts of the engine, each by itself."""

from __future__ import annotations

import json

import pytest
import torch

from dlas.context import Context, mix_seed
from dlas.engine.device import choose_device
from dlas.engine.gate import Gate
from dlas.engine.meter import Meter
from dlas.engine.microbatch import split_batch, to_device
from dlas.errors import ConfigurationError
from dlas.observe.recorder import Recorder
from dlas.observe.run_folder import RunFolder
from dlas.registry import LOSSES, Registry


def test_seeds_differ_in_every_part_and_order():
    seeds = {mix_seed(*parts) for parts in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, "a"), (0, "b"), ("a", 0)]}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    counts = torch.zeros(64)
    for number in range(2000):
        counts += torch.tensor([(mix_seed(number) >> bit) & 1 for bit in range(64)])
    assert counts[63] == 0
    assert (counts[:63] / 2000 - 0.5).abs().max() < 0.06  # each bit is a fair coin: five standard deviations are 0.056


def test_noise_belongs_to_the_sample_and_the_stream():
    whole = Context({}, seed=3, positions=[10, 11, 12]).randn((2, 4), "a")
    part = Context({}, seed=3, positions=[12]).randn((2, 4), "a")
    assert part[0].equal(whole[2])
    assert not Context({}, seed=3, positions=[12]).randn((2, 4), "b")[0].equal(whole[2])
    assert not Context({}, seed=4, positions=[12]).randn((2, 4), "a")[0].equal(whole[2])
    uniform = Context({}, seed=3, positions=list(range(200))).rand((50,), "a")
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    many = Context({}, seed=3, positions=list(range(200))).randn((50,), "a")
    assert abs(float(many.mean())) < 0.05
    assert abs(float(many.std()) - 1) < 0.05


@pytest.mark.parametrize(
    ("gate", "open_at"),
    [(Gate(), [0, 1, 2, 3, 4, 5]), (Gate(2), [2, 3, 4, 5]), (Gate(before=2), [0, 1]), (Gate(1, 5, 2), [2, 4])],
)
def test_gates(gate, open_at):
    assert [step for step in range(6) if gate(step)] == open_at


def test_the_meter_weights_micro_batches_and_starts_anew_after_reading():
    meter = Meter()
    meter.add("loss", torch.tensor(1.0), 0.75)
    meter.add("loss", torch.tensor(5.0), 0.25)
    meter.add("loss", torch.tensor(4.0), 1.0)
    meter.add("other", torch.tensor(7.0, dtype=torch.bfloat16))
    assert meter.read() == {"loss": 3.0, "other": 7.0}
    assert meter.read() == {}


def test_a_weight_may_be_on_the_device_and_a_name_without_any_is_left_out():
    meter, resumed = Meter(), Meter()
    meter.add("part", torch.tensor(1.0), torch.tensor(3))
    meter.add("loss", torch.tensor(2.0), 0.5)
    meter.add("part", torch.tensor(5.0), torch.tensor(1))
    meter.add("none", torch.tensor(0.0), torch.tensor(0))
    resumed.load_state_dict(meter.state_dict(), torch.device("cpu"))
    assert meter.read() == resumed.read() == {"part": 2.0, "loss": 2.0}


@pytest.mark.parametrize(("total", "parts", "sizes"), [(7, 3, [3, 2, 2]), (4, 4, [1, 1, 1, 1]), (5, 1, [5])])
def test_a_batch_is_cut_evenly_and_nothing_is_lost(total, parts, sizes):
    batch = {"x": torch.arange(total), "names": [str(i) for i in range(total)], "table": torch.zeros(total + 1), "word": "one"}
    pieces = split_batch(batch, list(range(100, 100 + total)), parts)
    assert [len(piece.positions) for piece in pieces] == sizes
    assert sum(piece.share for piece in pieces) == pytest.approx(1)
    assert torch.cat([piece.state["x"] for piece in pieces]).equal(batch["x"])
    assert [name for piece in pieces for name in piece.state["names"]] == batch["names"]
    assert all(piece.state["table"] is batch["table"] and piece.state["word"] == "one" for piece in pieces)


def test_only_images_take_the_memory_format():
    batch = {"image": torch.rand(2, 3, 4, 4), "clip": torch.rand(2, 1, 9), "path": ["a", "b"]}
    moved = to_device(batch, torch.device("cpu"), torch.channels_last)
    assert moved["image"].is_contiguous(memory_format=torch.channels_last)
    assert moved["clip"].is_contiguous()
    assert moved["path"] == ["a", "b"]


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu").type == "cpu"
    for name in ("cuda:99", "toaster"):
        with pytest.raises(ConfigurationError, match=f"device: {name}: not usable here"):
            choose_device(name)


def test_rows_after_a_checkpoint_and_half_written_ones_are_forgotten(tmp_path):
    folder = RunFolder(tmp_path)
    recorder = Recorder(folder.metrics, None)
    for step in (1, 2, 3):
        recorder.train(step, step, 0.5, {"loss": float("nan") if step == 2 else 1.0})
    recorder.validation(2, 2, 0.5, "val", {"psnr": float("inf")})
    recorder.close()
    with folder.metrics.open("a") as file:
        file.write('{"phase": "train", "st')
    folder.forget_after(2)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [("train", 1), ("train", 2), ("val", 2)]
    assert rows[1]["loss"] is None
    assert (rows[2]["set"], rows[2]["psnr"]) == ("val", None)


def test_the_registry_names_what_was_meant_and_refuses_a_second_owner(tmp_path):
    with pytest.raises(ConfigurationError, match="no loss is called 'pixx'; did you mean 'pix'"):
        LOSSES.find("pixx")
    with pytest.raises(ConfigurationError, match="loss 'pix' has no option 'criterium'; did you mean 'criterion'"):
        LOSSES.create("pix", {"criterium": "l1", "real": "a", "fake": "b"})
    with pytest.raises(ConfigurationError, match="loss 'pix' needs the options criterion, fake"):
        LOSSES.create("pix", {"real": "a"})
    registry = Registry("thing", "THINGS", "dlas.nothing")
    registry.register("a")(lambda: None)
    path = tmp_path / "elsewhere.py"
    path.write_text("@THINGS.register('a')\ndef other(): ...\n")
    with pytest.raises(ConfigurationError, match="the thing name 'a' is registered twice"):
        registry.add_source(path, "elsewhere")
