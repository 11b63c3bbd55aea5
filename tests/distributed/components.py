"""Components that only tests in several processes use."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlas.context import Context
from dlas.data.base import Dataset, Request, Sample
from dlas.injectors.base import Injector, State
from dlas.layers.contrastive import contrastive_loss
from dlas.losses.base import Loss
from dlas.observe import disk
from dlas.registry import ARCHS, DATASETS, INJECTORS, LOSSES
from dlas.types import PositiveInt, StateIn, StateOut


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W), likewise."""
        return x + torch.tanh(self.norm(self.conv(x)))


@ARCHS.register("ToyBlocks")
class ToyBlocks(nn.Module):
    """Repeated blocks between two convolutions, and a branch that nothing uses."""

    def __init__(self, *, width: PositiveInt = 5, count: PositiveInt = 3, scale: PositiveInt = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width) for _ in range(count)])
        self.spare = nn.Linear(2, 2)
        self.last = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, h * scale, w * scale)."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return nn.functional.pixel_shuffle(self.last(x), self.scale)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8),)


@ARCHS.register("ToyClip")
class ToyClip(nn.Module):
    """Gives the contrastive loss of pictures of two sizes by itself."""

    brings_together = True

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(192, 6), nn.Linear(768, 6)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """(B, 3, 8, 8), (B, 3, 16, 16) -> a scalar."""
        return contrastive_loss(self.one(one.flatten(1)), self.other(other.flatten(1)), self.temperature)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16))


@DATASETS.register("toy_uneven")
class Uneven(Dataset):
    """Three pictures of three sizes."""

    provides = ("lq", "hq", "name")

    def __init__(self, phase: str, /, *, scale: PositiveInt = 2) -> None:
        self.scale = scale

    def __len__(self) -> int:
        return 3

    def __getitem__(self, request: Request) -> Sample:
        side = (16, 40, 96)[request.index]
        hq = torch.rand(3, side, side, generator=torch.Generator().manual_seed(request.index))
        return {"lq": nn.functional.avg_pool2d(hq, self.scale), "hq": hq, "name": f"picture{request.index}"}


@LOSSES.register("toy_bad_sample")
class BadSample(Loss):
    """Mean of its input; not a number for the micro-batch with one place of the sample order."""

    def __init__(self, *, in_: StateIn, position: int) -> None:
        super().__init__()
        self.source = in_
        self.position = position

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        mean = state[self.source].float().square().mean()
        return mean * torch.nan if self.position in context.positions else mean


@LOSSES.register("toy_contrast")
class Contrast(Loss):
    """Each sample of one set is to be nearest to its own among those of the other."""

    def __init__(self, *, in_: StateIn, of: StateIn) -> None:
        super().__init__()
        self.one = in_
        self.other = of

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        one, other = (state[key].float().mean((2, 3)) for key in (self.one, self.other))
        return nn.functional.cross_entropy(one @ other.t(), torch.arange(len(one)))


@INJECTORS.register("toy_bad_disk")
class BadDisk(Injector):
    """From one step on the shards of one rank cannot be written: the disk fails a few times, or the process is killed in the
    midst of one, the first time that it is started; out = in."""

    def __init__(self, *, in_: StateIn, out: StateOut, at: int, rank: int, fails: int = 0, kills: bool = False) -> None:
        self.source = in_
        self.out = out
        self.at = at
        self.rank = rank
        self.fails = fails
        self.kills = kills and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        if context.step == self.at and int(os.environ.get("RANK", "0")) == self.rank and (self.fails or self.kills):
            real = disk.write_file

            def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
                if not path.name.startswith("shard-"):
                    return real(path, chunks)
                if self.kills:
                    path.write_bytes(b"half")
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.fails:
                    self.fails -= 1
                    raise OSError(errno.EIO, "the toy disk fails", str(path))
                disk.write_file = real
                return real(path, chunks)

            disk.write_file = write_file
        return {self.out: state[self.source]}


@INJECTORS.register("toy_tokens")
class Tokens(Injector):
    """out = 16 tokens of 8 from pictures: how bright their parts are."""

    def __init__(self, *, in_: StateIn, out: StateOut) -> None:
        self.source = in_
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        coarse = nn.functional.adaptive_avg_pool2d(state[self.source].mean(1), 4)
        return {self.out: (8 * coarse).long().clamp(0, 7).flatten(1)}


class _ShortBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@LOSSES.register("toy_short")
class Short(Loss):
    """Mean square of its input; one rank has no memory for its gradient if there are too many samples."""

    def __init__(self, *, in_: StateIn, above: int, rank: int) -> None:
        super().__init__()
        self.source = in_
        self.above = above
        self.rank = rank

    def forward(self, state: State, context: Context) -> Tensor:
        """A scalar."""
        value = state[self.source].float().square().mean()
        fails = len(context.positions) > self.above and int(os.environ.get("RANK", "0")) == self.rank
        return _ShortBackward.apply(value) if fails else value


@INJECTORS.register("toy_death")
class Death(Injector):
    """Fails, sends its process a signal, or hangs, in one rank at one step; out = in."""

    def __init__(
        self, *, in_: StateIn, out: StateOut, at: int, rank: int, number: int | None = None, hangs: bool = False
    ) -> None:
        self.source = in_
        self.out = out
        self.at = at
        self.rank = rank
        self.number = number
        self.hangs = hangs

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        if context.step == self.at and int(os.environ.get("RANK", "0")) == self.rank:
            if self.hangs:
                time.sleep(600)
            if self.number is None:
                raise RuntimeError("the toy has died")
            os.kill(os.getpid(), self.number)
        return {self.out: state[self.source]}


@INJECTORS.register("toy_places")
class Places(Injector):
    """Writes down which samples of the endless order a process trains on, and what they are; out = in.

    A line of JSON for each micro-batch, in `folder/RANK-OF-WORLD.jsonl`: the iteration, the positions, and checksums.
    In the first life of a group of processes that torchrun may start again, rank 1 fails at the iteration `dies_at`.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, folder: str, dies_at: int = -1) -> None:
        self.source = in_
        self.out = out
        self.folder = Path(folder)
        self.dies_at = dies_at

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        rank, world = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        value = state[self.source]
        line = json.dumps([context.step, list(context.positions), [zlib.crc32(sample.numpy()) for sample in value]])
        with (self.folder / f"{rank}-{world}.jsonl").open("a") as file:
            file.write(line + "\n")
        if context.step == self.dies_at and rank == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            raise RuntimeError("the toy has died in its first life")
        return {self.out: value}
