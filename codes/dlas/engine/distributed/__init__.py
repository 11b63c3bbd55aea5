"""Training in several processes."""

from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.single import NoExchange, Single
from dlas.engine.distributed.strategy import GradientExchange, Strategy, Update

__all__ = ["GradientExchange", "NoExchange", "Ranks", "Single", "Strategy", "Update"]
