"""Finding each other again: processes that torchrun has started anew must not take up what their predecessors left behind.

torchrun keeps one store for all lives of a run. Addresses that the processes of an earlier life wrote there are still in it,
and who reads one before its owner has written the new one tries to reach a process that is dead.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dlas.errors import TrainingError

_PAUSE = 0.02  # seconds


def store_of_this_life(rank: int, world_size: int, timeout: timedelta) -> Store:
    """The part of torchrun's store that only the processes of this life use.

    Raises:
        TrainingError: the other processes do not come.
    """
    store, *_ = next(rendezvous("env://", timeout=timeout))
    return PrefixStore(agree(store, rank, world_size, timeout), store)


def agree(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all processes of this life know, and that no earlier life has used, whatever is in the store.

    Each process asks under a name of its own, newly made; rank 0 answers whatever questions it finds, those of the dead too,
    until every rank has said that it has got *this* answer.

    Args:
        store: shared by all processes, of this life and of earlier ones.
        rank: of this process.
        world_size: number of processes.
        timeout: how long to wait for the others.

    Raises:
        TrainingError: they do not come.
    """
    if rank != 0:
        question = uuid.uuid4().hex
        store.set(f"question/{rank}", question)
        store.wait([f"answer/{question}"], timeout)
        life = store.get(f"answer/{question}").decode()
        store.set(f"heard/{life}/{rank}", "")
        return life
    life = uuid.uuid4().hex
    answered: set[str] = set()
    missing = set(range(1, world_size))
    end = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if not store.check([f"question/{other}"]):
                continue
            question = store.get(f"question/{other}").decode()
            if question not in answered:
                store.set(f"answer/{question}", life)
                answered.add(question)
            if store.check([f"heard/{life}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > end:
            raise TrainingError(
                f"{len(missing)} of {world_size} processes did not come within {timeout.total_seconds():.0f} s, the first of "
                f"them rank {min(missing)}; look at what they say, or raise distributed.timeout"
            )
        time.sleep(_PAUSE if missing else 0)
    return life
