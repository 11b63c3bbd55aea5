"""Batches on their way to the device: in which order streams wait for each other."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from dlas.context import Context
from dlas.engine import transfer
from dlas.engine.transfer import Transfer
from dlas.host import unattended


class Stream:
    """Writes down what waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch):
    """Imitates CUDA's streams; tensors stay where they are."""
    log: list[str] = []
    copies, training = Stream("copies", log), Stream("training", log)

    @contextmanager
    def within(stream):
        log.append(f"in {stream.name}")
        yield
        log.append("out")

    def copied(batch, device, layout):
        log.append(f"copy to {device}")
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in batch.items()}

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: training)
    monkeypatch.setattr(transfer, "to_device", copied)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: log.append(f"{stream.name} uses {self.shape[0]}"))
    return log


def test_copies_wait_for_nothing_and_training_for_the_copies(log):
    moved = Transfer(torch.device("cuda"), torch.contiguous_format)({"a": torch.ones(2), "names": ["x"], "b": torch.ones(3)})
    assert log == ["in copies", "copy to cuda", "out", "training waits for copies", "training uses 2", "training uses 3"]
    assert moved["names"] == ["x"]
    assert moved["a"].equal(torch.ones(2))


def test_what_is_on_the_device_already_is_written_before_it_is_converted(log):
    Transfer(torch.device("cuda"), torch.channels_last)({"latents": torch.ones(2, device="meta")})
    assert log[:2] == ["copies waits for training", "in copies"]


def test_without_streams_batches_are_moved_in_order():
    batch = {"x": torch.rand(2, 3, 4, 4), "names": ["a", "b"]}
    moved = Transfer(torch.device("cpu"), torch.contiguous_format)(batch)
    assert moved["x"] is batch["x"]
    assert Transfer(torch.device("cpu"), torch.channels_last)(batch)["x"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("draw", ["rand", "randn"])
def test_few_random_numbers_are_drawn_on_the_host_and_travel_together(draw):
    context = Context({}, positions=[3, 5], seed=1)
    few = getattr(context, draw)((2,), "times")
    assert few.shape == (2, 2)
    assert getattr(context, draw)((2,), "times", "meta").device.type == "meta"  # which cannot draw
    with pytest.raises(RuntimeError, match="META device type not an accelerator"):
        getattr(context, draw)((257,), "times", "meta")


def test_copies_are_left_to_themselves_but_on_mps_which_reads_the_source_later():
    assert unattended("cuda:1")
    assert not unattended("mps")
