"""Every process holds all weights and trains on its part of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config import Config
from dlas.engine.distributed.buffers import BufferSharing, broadcast
from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.reducer import BucketReducer
from dlas.errors import ConfigurationError


class DataParallel:
    """Data parallelism; see `Strategy`.

    Args:
        config: of the run.
        device: of this process.

    Raises:
        ConfigurationError: normalisation over all processes is asked for where torch has none.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.section = config.distributed
        if self.section.sync_batchnorm and device.type != "cuda":
            raise ConfigurationError("distributed.sync_batchnorm: torch has it for GPUs only; remove it here")
        self.ranks = self.evaluating = Ranks.current()
        self.whole = True
        self._buffers = BufferSharing()

    def spread(self, networks: Mapping[str, nn.Module]) -> None:
        """All ranks get rank 0's values: machines may draw other ones from the same seed."""
        if self.section.sync_batchnorm:
            for network in networks.values():
                nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place; the names of its state dict stay
        broadcast(networks.values())

    def exchange(self, step: str, named: Mapping[str, Tensor]) -> BucketReducer:
        """See `BucketReducer`."""
        return BucketReducer(step, named, self.section.bucket_mb, self.ranks.world_size)

    def any_rank(self, flag: bool) -> bool:
        """No rank waits for another one's gradients by then, see `BucketReducer.finish`."""
        return self.ranks.any(flag)

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """See `BufferSharing`."""
        self._buffers.share(modules)

    def gathered(self, state: Any) -> Any:
        """It is whole everywhere."""
        return state
