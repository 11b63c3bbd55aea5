"""Batches travel beside the computation."""

from __future__ import annotations

import pytest
import torch

from dlas.context import Context
from dlas.engine.transfer import Transfer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LONG = 2 * 10**9  # clock cycles: about a second


def test_a_batch_arrives_while_the_device_computes():
    device = torch.device("cuda")
    transfer = Transfer(device, torch.channels_last)
    batch = {"x": torch.rand(4, 3, 64, 64).pin_memory()}
    transfer(dict(batch))  # the first copy allocates
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(LONG)
    busy.record()
    moved = transfer(dict(batch))
    assert transfer._stream is not None
    transfer._stream.synchronize()
    assert not busy.query()  # the copy is done, the computation before it is not
    torch.testing.assert_close(moved["x"].cpu(), batch["x"], rtol=0, atol=0)
    assert moved["x"].is_contiguous(memory_format=torch.channels_last)


def test_memory_is_not_reused_while_training_reads_it():
    device = torch.device("cuda")
    transfer = Transfer(device, torch.contiguous_format)
    sums = []
    for number in range(6):
        moved = transfer({"x": torch.full((1 << 20,), float(number)).pin_memory()})
        torch.cuda._sleep(LONG // 50)
        sums.append(moved["x"].mean())
        del moved  # while the device still sleeps: the next batch must not come to lie there
    assert torch.stack(sums).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_few_random_numbers_are_those_of_the_host():
    context = Context({}, positions=[3, 5], seed=1)
    assert context.rand((4,), "times", "cuda").cpu().equal(context.rand((4,), "times"))
    assert context.randn((3, 64, 64), "noise", "cuda").is_cuda
