"""Networks and averages on other devices than the run."""

from __future__ import annotations

import re

from dlas.config.problems import Problem, Severity
from dlas.config.schema import Config
from dlas.config.wiring.components import at

DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def check_devices(config: Config, problems: list[Problem], training: bool, severity: Severity = "error") -> None:
    """Notes devices that no machine has, and with `severity` those that several processes cannot share."""
    strategy = config.distributed.strategy if config.distributed is not None else None
    several = training and strategy not in (None, "none")
    for name, section in (config.networks or {}).items():
        if section.device is None:
            continue
        cursor = at(section, "device", problems)
        if isinstance(section.device, str) and not DEVICE.fullmatch(section.device):
            cursor.note(f"'{section.device}' is no device", "write cpu, a GPU's number, cuda:1 or mps")
        elif several and section.trainable:
            what = f"with 'strategy: {strategy}' a trained network is on the device of each process"
            cursor.note(what, f"leave it out, or freeze '{name}' (trainable: false)", severity)
        elif several and section.device != "cpu":
            what = f"with 'strategy: {strategy}' each process has a GPU of its own"
            cursor.note(what, "write cpu, or leave it out", severity)
    ema = config.train.ema if training and config.train is not None else None
    if ema is not None and ema.device == "cpu" and strategy == "fsdp":
        what = "with 'strategy: fsdp' averages are cut up as the weights are"
        at(ema, "device", problems).note(what, "leave it out", severity)
