"""How processes find out that there are others, which device is theirs, and where networks are cut."""

from __future__ import annotations

import pytest
import torch
from components import ToyBlocks
from torch import nn

import toys
from dlas.config import check
from dlas.engine.distributed import Ranks
from dlas.engine.distributed.create import create_strategy
from dlas.engine.distributed.fsdp import blocks
from dlas.engine.distributed.launch import Launch, find_launch, joined, local_device
from dlas.errors import ConfigurationError
from runs import configure

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node3", "MASTER_PORT": "4000"}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[03-04],x1",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
}


def test_torchrun_and_slurm_are_found():
    assert find_launch("auto", {}) == Launch()
    assert find_launch("auto", TORCHRUN) == find_launch("pytorch", TORCHRUN) == Launch(5, 8, 1, "node3:4000")
    assert find_launch("auto", SLURM) == find_launch("slurm", SLURM) == Launch(3, 4, 1, "gpu03:23456")
    assert find_launch("auto", TORCHRUN | SLURM).address == "node3:4000"  # torchrun on the machines of an allocation
    assert find_launch("none", TORCHRUN) == Launch()
    shell = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"}
    assert find_launch("auto", shell) == Launch()  # in an allocation, not started by srun
    with pytest.raises(ConfigurationError, match=r"RANK, WORLD_SIZE.*torchrun --nproc_per_node"):
        find_launch("pytorch", {"LOCAL_RANK": "0"})


def test_each_process_of_a_machine_has_its_gpu(tmp_path, monkeypatch):
    config = configure(tmp_path, toys.PSNR)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device(config, 1) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device(config, 1) == "cuda:1"
    with pytest.raises(ConfigurationError, match="there are 2"):
        local_device(config, 2)
    with monkeypatch.context() as bound:
        bound.setenv("SLURM_GPUS_PER_TASK", "1")  # srun has given each process its own
        bound.setattr(torch.cuda, "device_count", lambda: 1)
        assert local_device(config, 2) == "cuda:0"
    config.distributed.gpu_ids = [4, 6, 7]
    assert local_device(config, 2) == "cuda:7"
    with pytest.raises(ConfigurationError, match="gpu_ids lists 3"):
        local_device(config, 3)
    config.device = "cpu"
    assert local_device(config, 3) == "cpu"
    config.device = "cuda:1"
    with pytest.raises(ConfigurationError, match=r"cuda:1 is one GPU"):
        local_device(config, 1)


def test_gpus_of_older_files_are_read(tmp_path):
    config = configure(tmp_path, "gpu_ids: [2, 3]\n" + toys.PSNR)
    assert (config.distributed.gpu_ids, config.device) == ([2, 3], "auto")
    assert configure(tmp_path, "gpu_ids: [1]\n" + toys.PSNR).device == "cuda:1"
    file = tmp_path / "options.yml"
    file.write_text("gpu_ids: [0, -1]\n" + toys.PSNR)
    assert "expected a list of GPU numbers" in str(check(file)[0])


def test_what_cannot_be_is_refused_in_words(tmp_path, monkeypatch):
    config = configure(tmp_path, toys.PSNR, "distributed.strategy=none")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="8 processes were started"), joined(config):
        pass
    monkeypatch.delenv("WORLD_SIZE")  # or the checker speaks first
    cpu = torch.device("cpu")
    monkeypatch.setattr(Ranks, "current", staticmethod(lambda: Ranks(1, 3)))
    with pytest.raises(ConfigurationError, match="batch_size is 4, which 3 processes cannot share evenly"):
        create_strategy(config, cpu)
    config = configure(tmp_path, toys.PSNR, "datasets.train.batch_size=6", "distributed.sync_batchnorm=true")
    with pytest.raises(ConfigurationError, match="for GPUs only"):
        create_strategy(config, cpu)
    config.distributed.strategy = "fsdp"
    with pytest.raises(ConfigurationError, match="strategy: ddp"):
        create_strategy(config, cpu)
    config = configure(tmp_path, toys.PSNR, "datasets.train.batch_size=6", "distributed={strategy: fsdp, shard_size: 2}")
    with pytest.raises(ConfigurationError, match="3 processes cannot be divided into groups"):
        create_strategy(config, cpu)
    config = configure(tmp_path, toys.PSNR, "datasets.train.batch_size=6", "distributed={strategy: fsdp, gather_dtype: bf16}")
    config.train.micro_batch_size = "auto"
    with pytest.raises(ConfigurationError, match=r"micro_batch_size: .*cannot (?s:.*)too$"):  # all that the checker refuses
        create_strategy(config, cpu)


def test_repeated_blocks_are_cut_out():
    network = ToyBlocks(count=3)
    assert blocks(network) == list(network.blocks)
    nested = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.ModuleList([ToyBlocks(count=2), ToyBlocks(count=2)]))
    assert blocks(nested) == list(nested[2])
    assert blocks(nn.ModuleDict({"layers": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))})) == []
    network.blocks[1].conv.weight = network.blocks[0].conv.weight  # a parameter in two blocks
    assert blocks(network) == []
