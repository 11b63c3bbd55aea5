"""Which strategy a run takes."""

from __future__ import annotations

import torch

from dlas.config import Config, Problem
from dlas.config.wiring.spread import check_spread
from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.single import Single
from dlas.engine.distributed.strategy import Strategy
from dlas.errors import ConfigurationError


def create_strategy(config: Config, device: torch.device) -> Strategy:
    """The one that `distributed.strategy` names, or a single process where there is only one.

    Args:
        config: of the run.
        device: of this process.

    Raises:
        ConfigurationError: the batch cannot be shared evenly, or the file asks for what the strategy cannot do.
    """
    ranks = Ranks.current()
    if not ranks.many:
        return Single()
    problems: list[Problem] = []
    check_spread(config, problems)
    refused = [str(problem) for problem in dict.fromkeys(problems) if problem.severity == "error"]
    if refused:
        raise ConfigurationError("\n".join(refused))
    batch_size = config.datasets["train"].batch_size
    if batch_size % ranks.world_size:
        raise ConfigurationError(
            f"datasets.train.batch_size is {batch_size}, which {ranks.world_size} processes cannot share evenly; it counts the "
            f"samples of all processes together: take a multiple of {ranks.world_size}"
        )
    if config.distributed.strategy == "fsdp":
        from dlas.engine.distributed.fsdp import FullySharded

        return FullySharded(config, device)
    if config.distributed.strategy == "deepspeed":
        from dlas.engine.distributed.deepspeed import ZeroSharded

        return ZeroSharded(config, device)
    from dlas.engine.distributed.ddp import DataParallel

    return DataParallel(config, device)
