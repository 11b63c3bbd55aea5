"""What several processes that train together must do alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import distributed


def any_rank() -> Callable[[bool], bool]:
    """A function that tells whether a flag is set in any process of the run; every process must call it equally often.

    Flags of the host are compared through the host: the GPU is not waited for.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return bool
    group = distributed.group.WORLD if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")

    def any_(flag: bool) -> bool:
        tensor = torch.tensor(int(flag))
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group)
        return bool(tensor)

    return any_
