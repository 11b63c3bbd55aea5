"""Networks and averages on other devices than the run."""

from __future__ import annotations

import re

from dlas.config.problems import Problem
from dlas.config.schema import Config
from dlas.config.wiring.components import at

DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


def check_devices(config: Config, problems: list[Problem], training: bool) -> None:
    """Notes devices that no machine has, and those that several processes cannot share."""
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
            cursor.note(what, f"leave it out, or freeze '{name}' (trainable: false)")
        elif several and section.device != "cpu":
            cursor.note(f"with 'strategy: {strategy}' each process has a GPU of its own", "write cpu, or leave it out")
    ema = config.train.ema if training and config.train is not None else None
    if ema is not None and ema.device == "cpu" and strategy == "fsdp":
        at(ema, "device", problems).note("with 'strategy: fsdp' averages are cut up as the weights are", "leave it out")
