"""How the processes of a run find each other: under torchrun, under SLURM, or not at all."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import distributed

from dlas.config import Config
from dlas.engine.distributed.lives import store_of_this_life
from dlas.engine.distributed.ranks import Ranks
from dlas.errors import ConfigurationError

Launcher = Literal["auto", "none", "pytorch", "slurm"]
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_GPU_OF_TASK = ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND")  # set by srun --gpus-per-task or --gpu-bind alone
_FIRST_PORT = 20_000


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together.

    Args:
        rank: its number, in [0, world_size).
        world_size: how many there are.
        local_rank: its number on its machine.
        address: where rank 0 listens, as `host:port`; None where there is only one process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str | None = None


def find_launch(launcher: Launcher, environment: Mapping[str, str] = os.environ) -> Launch:
    """What started this process, by its environment.

    Args:
        launcher: `pytorch` (torchrun), `slurm` (srun), `none` for a single process whatever the environment says, or `auto`:
            whichever of them has left its variables.
        environment: of the process.

    Raises:
        ConfigurationError: the launcher's variables are not there, or are no numbers.
    """
    if launcher == "pytorch" or (launcher == "auto" and all(name in environment for name in _TORCHRUN)):
        rank, world_size, local_rank = _numbers(environment, _TORCHRUN, "torchrun --nproc_per_node=N train.py ...")
        port = environment.get("MASTER_PORT", str(_FIRST_PORT))
        return Launch(rank, world_size, local_rank, f"{environment.get('MASTER_ADDR', '127.0.0.1')}:{port}")
    # An interactive allocation has the variables, too; a step that srun started has its own number.
    if launcher == "slurm" or (launcher == "auto" and "SLURM_STEP_ID" in environment and _SLURM[0] in environment):
        rank, world_size, local_rank = _numbers(environment, _SLURM, "srun python train.py ... --launcher slurm")
        host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_JOB_NODELIST", "127.0.0.1"))
        job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or 0)
        port = environment.get("MASTER_PORT", str(_FIRST_PORT + job % _FIRST_PORT))
        return Launch(rank, world_size, local_rank, f"{host}:{port}" if world_size > 1 else None)
    return Launch()


def _numbers(environment: Mapping[str, str], names: tuple[str, ...], command: str) -> list[int]:
    missing = [name for name in names if not environment.get(name, "").isdecimal()]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} must be numbers in the environment; start the run with `{command}`")
    return [int(environment[name]) for name in names]


def _first_host(nodes: str) -> str:
    """The first machine of a list such as `a[03-05,9],b`."""
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


def local_device(config: Config, local_rank: int) -> str:
    """The name of this process's device: with CUDA one GPU each, taken from `distributed.gpu_ids` where it is given.

    Where srun shows each process nothing but a GPU of its own, it is that one.

    Raises:
        ConfigurationError: there are more processes on this machine than GPUs for them.
    """
    ids = config.distributed.gpu_ids
    if config.device.startswith("cuda:") and local_rank:
        raise ConfigurationError(
            f"device: {config.device} is one GPU, and several processes were started; write 'device: auto', and which GPUs "
            "they take under 'distributed.gpu_ids'"
        )
    if config.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return config.device if config.device != "auto" else "cpu"
    chosen = ids or list(range(torch.cuda.device_count()))
    if len(chosen) == 1 and not ids and any(os.environ.get(name) for name in _GPU_OF_TASK):
        return "cuda:0"
    if local_rank >= len(chosen):
        where = f"distributed.gpu_ids lists {len(ids)}" if ids else f"there are {len(chosen)}"
        raise ConfigurationError(
            f"process {local_rank} of this machine has no GPU: {where}; start as many processes as GPUs (--nproc_per_node)"
        )
    return f"cuda:{chosen[local_rank]}"


@contextmanager
def joined(config: Config, launcher: Launcher = "auto") -> Iterator[Ranks]:
    """Opens the process group for a run and closes it; `config.device` becomes this process's own.

    What ends a process is written to where torchrun looks for it, so that torchrun names the rank and the error that ended
    all. After an error nothing is waited for: the other processes cannot answer any more.

    Args:
        config: of the run.
        launcher: as for `find_launch`.

    Raises:
        ConfigurationError: the environment does not fit, or `strategy: none` was started as several processes.
    """
    launch = find_launch(launcher)
    if launch.world_size == 1:
        ids = config.distributed.gpu_ids
        if ids and config.device == "auto" and torch.cuda.is_available():
            config.device = f"cuda:{ids[0]}"
        yield Ranks()
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    handler = get_error_handler()
    handler.initialize()
    try:
        open_group(config, launch)
        yield Ranks.current()
    except Exception as error:
        handler.record_exception(error)
        raise
    distributed.destroy_process_group()


def open_group(config: Config, launch: Launch) -> None:
    """Joins the other processes; `config.device` becomes this process's own."""
    if config.distributed.strategy == "none":
        raise ConfigurationError(
            f"distributed.strategy is none, and {launch.world_size} processes were started; write 'ddp', 'fsdp' or "
            "'deepspeed', or start one"
        )
    config.device = local_device(config, launch.local_rank)
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=config.distributed.timeout)
    place: dict[str, Any] = {"init_method": f"tcp://{launch.address}"}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        place = {"store": store_of_this_life(launch.rank, launch.world_size, timeout)}
    # Decisions of the host go through gloo on the CPU, so that they never wait for the GPU.
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
        **place,
    )
