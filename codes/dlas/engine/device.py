"""Choosing the device, and the process-wide numeric settings."""

from __future__ import annotations

import os

import torch

from dlas.config.schema import Config
from dlas.context import Context, mix_seed
from dlas.errors import ConfigurationError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA (or ROCm, which torch calls cuda), else MPS, else the CPU; other names are taken as they are.

    Raises:
        ConfigurationError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"device: {name}: not usable here ({reason}); write 'device: auto' or 'cpu'") from error
    return device


def apply_numeric_settings(config: Config) -> None:
    """Sets TF32, cuDNN benchmarking, determinism and anomaly detection for the process."""
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = config.cudnn_benchmark and not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it; read when CUDA starts
    torch.use_deterministic_algorithms(config.deterministic)
    torch.autograd.set_detect_anomaly(config.anomaly_detection)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seeds the generators that layers such as dropout draw from. Cheap enough for every step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)  # networks may be on other GPUs
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def seed_micro_batch(context: Context, step_name: str, device: torch.device) -> None:
    """Seeds what layers draw from for one micro-batch of one step, so that it can be repeated alone and draws the same."""
    seed_everything(mix_seed(context.seed, context.step, step_name, context.positions[0]), device)


def memory_format(name: str) -> torch.memory_format:
    """The layout called `contiguous` or `channels_last`."""
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory held so far in MB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows, where this is the only user of it

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
