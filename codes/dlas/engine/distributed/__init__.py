"""Training in several processes."""

from dlas.engine.distributed.ranks import Ranks

__all__ = ["Ranks"]
