"""DeepSpeed's own JSON, made of a file of options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlas.config.schema import Config
from dlas.errors import ConfigurationError

_NEVER = 10**12  # steps between DeepSpeed's own log lines
_ELSEWHERE = {
    "optimizer": "steps.<name>.optimizer and optimizer_params",
    "scheduler": "train.lr_scheme",
    "fp16": "precision (fp16 cannot be had with DeepSpeed here: take bf16)",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
}


def deepspeed_json(config: Config, step: str, clip_norm: float, world_size: int | None) -> dict[str, Any]:
    """What `deepspeed.initialize` gets for a step.

    Micro-batches are weighed by their share of the batch before DeepSpeed sees them, so that for it a batch is one micro-batch.

    Args:
        config: of the run.
        step: name of the step, for messages.
        clip_norm: to which its gradient is clipped; 0: not.
        world_size: number of processes; None: not known yet, so that what depends on it is not compared.

    Raises:
        ConfigurationError: the user's own entries say other things than the file, or cannot be read.
    """
    assert config.train is not None
    section = config.distributed.deepspeed
    batch_size = config.datasets["train"].batch_size
    share = batch_size // (world_size or 1)
    count = config.train.micro_batches(share)
    zero: dict[str, Any] = {"stage": section.stage}
    if section.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.device.startswith("cuda")}
    if section.offload_param:
        zero["offload_param"] = {"device": "cpu", "pin_memory": config.device.startswith("cuda")}
    if section.stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # averages of the weights see parts of every one
    ours = {
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": _NEVER,
    }
    fixed: dict[str, tuple[Any, str]] = {
        "train_batch_size": (batch_size, "datasets.train.batch_size"),
        "gradient_clipping": (clip_norm, f"steps.{step}.clip_grad_eps"),
        "zero_optimization.stage": (section.stage, "distributed.deepspeed.stage"),
        "zero_optimization.stage3_param_persistence_threshold": (0, "nowhere: the averages of the weights need it"),
    }
    if world_size is not None:
        home = "train.mega_batch_factor"
        fixed["train_micro_batch_size_per_gpu"] = (-(-share // count), f"datasets.train.batch_size and {home}")
        fixed["gradient_accumulation_steps"] = (count, home)
    for source, theirs in (section.config or "", _read(section.config)), ("distributed.deepspeed.options", section.options):
        ours = _merged(ours, _without_conflicts(theirs, fixed, source))
    return ours


def _read(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"distributed.deepspeed.config: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"distributed.deepspeed.config: {path} holds no object of JSON")
    return found


def _without_conflicts(theirs: Mapping[str, Any], fixed: Mapping[str, tuple[Any, str]], source: str) -> dict[str, Any]:
    """The entries but for those that the file of options determines and that say the same as it, or `auto`."""
    for key, home in _ELSEWHERE.items():
        entry = theirs.get(key)
        if entry and not (isinstance(entry, dict) and entry.get("enabled") is False):
            raise ConfigurationError(f"{source}: '{key}' is not taken from DeepSpeed's entries; its place is {home}")
    for part in ("offload_optimizer", "offload_param"):
        entry = (theirs.get("zero_optimization") or {}).get(part)
        if isinstance(entry, dict) and entry.get("device") == "nvme":
            raise ConfigurationError(
                f"{source}: zero_optimization.{part}: 'device: nvme' cannot be had: checkpoints are put together here of what "
                "is in memory; write 'device: cpu'"
            )
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in theirs.items() if key not in _ELSEWHERE}
    for path, (value, home) in fixed.items():
        *outer, key = path.split(".")
        holder = kept.get(outer[0], {}) if outer else kept
        if key not in holder:
            continue
        found = holder.pop(key)
        if found not in ("auto", value):
            raise ConfigurationError(
                f"{source}: {path} is {found}, and by the file of options it is {value}. Its place is {home}: remove it "
                "here, or write 'auto'"
            )
    return kept


def _merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(ours)
    for key, value in theirs.items():
        known = result.get(key)
        result[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result
