"""One line on what would make a run faster, from where its time goes."""

from __future__ import annotations

import torch

from dlas.config import Config
from dlas.engine.ledger import Lap
from dlas.engine.precision import has_bf16
from dlas.registry import DATASETS

DATA, TRANSFER, COLLECTIVE, OPTIMIZER, LOGGING = 0.1, 0.1, 0.2, 0.25, 0.05
"""Shares of the training from which on a part is worth a word."""

BESIDE = 0.3
"""Share of the whole time for validation, and for checkpoints."""

FIRST = 2
"""Log lines without a word: the first ones see what happens once."""


class Advisor:
    """Says what to change; the same finding is told once, until another one comes between.

    Args:
        config: of the run.
        device: of the run.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._told = ""
        self._laps = 0

    def advise(self, lap: Lap, retries: int) -> str | None:
        """The most important finding, unless it was told just before.

        Args:
            lap: where the time went.
            retries: allocations that had to wait for memory since the last call.
        """
        self._laps += 1
        if self._laps <= FIRST:
            return None
        kind, line = self._finding(lap, retries)
        new = kind != self._told
        self._told = kind
        return line if new and line else None

    def _finding(self, lap: Lap, retries: int) -> tuple[str, str]:
        def percent(part: str) -> str:
            return f"{100 * lap.share(part):.0f} %"

        updates = sum(each for part, each in lap.seconds.items() if part.endswith("/optimizer")) / lap.training
        train = self.config.datasets["train"]
        if retries:
            return "memory", (
                f"memory is nearly full: {retries} allocations had to wait until others were given back; smaller micro-batches "
                "(train.micro_batch_size) are faster than that"
            )
        if lap.share("data") > DATA:
            return "data", f"data-bound: {percent('data')} of the training waits for data: {self._data_fix()}"
        if lap.share("eval") > BESIDE:
            return "eval", f"{percent('eval')} of the time is validation: raise train.val_freq, or validate on fewer samples"
        if lap.share("checkpoint") > BESIDE:
            return "checkpoint", f"{percent('checkpoint')} of the time writes checkpoints: raise logger.save_checkpoint_freq"
        if lap.share("transfer") > TRANSFER and not train.pin_memory:
            return "transfer", f"{percent('transfer')} of the training copies batches: set datasets.train.pin_memory: true"
        if lap.share("collective") > COLLECTIVE:
            return "collective", (
                f"{percent('collective')} of the training waits for other processes: more micro-batches per update "
                "(train.mega_batch_factor) talk less; a slow machine among them holds up all"
            )
        if updates > OPTIMIZER:
            return "optimizer", f"{100 * updates:.0f} % of the training updates weights: larger batches need fewer updates"
        if lap.share("logging") > LOGGING:
            return "logging", f"{percent('logging')} of the training writes logs and pictures: raise logger.print_freq"
        if self.config.precision == "fp32" and has_bf16(self.device):
            return "precision", (
                f"this {self.device.type} multiplies in bfloat16, and the run does not let it: `dlas tune` measures what "
                "'precision: bf16' would give"
            )
        return "", ""

    def _data_fix(self) -> str:
        train = self.config.datasets["train"]
        fixes = [f"more processes that load (datasets.train.n_workers, now {train.n_workers})"]
        options = {parameter.name for parameter in DATASETS.find(train.mode).parameters}
        if "cache" in options and train.options.get("cache", "none") == "none":
            fixes.append("decoded images in a cache (datasets.train.cache: mapped)")
        return ", or ".join(fixes)
