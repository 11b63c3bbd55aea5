"""Pictures of any size through a network, in tiles that memory has room for.

A tile is given a halo: as much of its surroundings as changes its result. So it becomes what it is in the whole picture.
Networks that look at the whole picture (means over it), or further than a halo may be, get tiles that overlap and fade into one
another.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.engine.out_of_memory import is_out_of_memory, reason, release_memory
from dlas.engine.passes.reach import EXACT, Forward, Reach, measure_reach
from dlas.errors import TrainingError

SMALLEST = 32
"""Side of the smallest tile that is tried."""

_LOG = logging.getLogger(__name__)
_PROBE = 64  # side of the picture on which memory is measured
_SHARE = 0.5  # of the free memory that tiles are planned for; what the plan missed halves the tiles
_HELD = 3.0  # how much more is alive at a time than a layer's input and output
_UNKNOWN_MEMORY = 4 << 30


@dataclass(frozen=True)
class Span:
    """A tile along one axis: what it is given, [start, stop), and the weight of each of its places in the result."""

    start: int
    stop: int
    weights: Tensor


def input_multiple(network: nn.Module) -> int:
    """What the sides of a network's input must be multiples of: it folds or strides over them."""
    return int(getattr(network, "unshuffle", 1)) * int(getattr(network, "initial_stride", 1))


def tile_grid(network: nn.Module) -> int:
    """Where tiles begin is a multiple of this, so that windows lie as they do in the whole picture."""
    return math.lcm(int(getattr(network, "window_size", 1)), input_multiple(network))


def plan(length: int, side: int, halo: int, fade: int, grid: int = 1) -> list[Span]:
    """Cuts an axis into tiles of (almost) the same length.

    Args:
        length: of the axis.
        side: tiles are at most this long without their halo; rounded to a multiple of `grid`.
        halo: what each is given beyond that on both sides, as far as there is something; a multiple of `grid`.
        fade: how far neighbours reach into each other while one fades into the other, at most `halo`. 0 cuts.
        grid: where tiles begin is a multiple of it.

    Returns:
        The tiles in order. At each place of the axis their weights add up to 1.
    """
    side = max(side // grid * grid, grid)
    count = -(-length // side)
    side = -(-length // (count * grid)) * grid
    cores = [(start, min(start + side, length)) for start in range(0, length, side)]
    places = torch.arange(length, dtype=torch.float64) + 0.5
    weights = []
    for start, stop in cores:
        inside = torch.ones(length, dtype=torch.float64)
        for edge, sign in ((start, 1), (stop, -1)):
            if 0 < edge < length:
                distance = sign * (places - edge)
                inside *= (distance / (2 * fade) + 0.5).clamp(0, 1) if fade else (distance > 0).double()
        weights.append(inside)
    total = torch.stack(weights).sum(0)
    spans = []
    for (start, stop), weight in zip(cores, weights, strict=True):
        first, last = max(start - halo, 0), min(stop + halo, length)
        spans.append(Span(first, last, (weight / total)[first:last].float()))
    return spans


class Tiler:
    """Runs a network on whole pictures or in tiles.

    Args:
        forward: the network at the precision of the result: (1, channels, height, width) to the picture on the same device.
        exact_forward: the same in float32, by which the halo is measured.
        network: its layers, of which memory is measured.
        channels: of its input.
        scale: enlargement.
        device: where it computes.
        tile: side of the tiles in pixels of the input, without halo; `auto` takes as large ones as there is memory for, halving
            them when it runs out; 0 takes pictures whole.
        grid: where tiles begin is a multiple of it.
        halo: of the tiles; measured on the first picture that needs tiles if it is None.
        tolerance: how far from the whole picture's result tiles may be.
        on_tile: called with the number of tiles done, and of all.
        result_device: where results are put together. On the CPU they take no memory of the device.
    """

    def __init__(
        self,
        forward: Forward,
        exact_forward: Forward,
        network: nn.Module,
        *,
        channels: int,
        scale: float,
        device: torch.device,
        tile: int | Literal["auto"] = "auto",
        grid: int = 1,
        halo: int | None = None,
        tolerance: float = EXACT,
        on_tile: Callable[[int, int], None] | None = None,
        result_device: torch.device | str = "cpu",
    ) -> None:
        self.result_device = result_device
        self.forward = forward
        self.exact_forward = exact_forward
        self.network = network
        self.channels = channels
        self.scale = scale
        self.device = device
        self.tile = tile
        self.grid = grid
        self.tolerance = tolerance
        self.on_tile = on_tile
        self.reach = None if halo is None else Reach(-(-halo // grid) * grid, True)
        self._most: int | None = None  # pixels of one pass, halo included, that memory has room for

    def __call__(self, picture: Tensor) -> Tensor:
        """Enlarges pictures.

        Args:
            picture: (batch, channels, height, width) in [0, 1], on any device.

        Returns:
            (batch, channels, height * scale, width * scale) in float32 on `result_device`.

        Raises:
            TrainingError: memory does not suffice, and `tile` does not let it be used more sparingly.
        """
        side = self._first_side(picture)
        while True:
            try:
                return self._whole(picture) if side is None else self._tiled(picture, side)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                cause = reason(error)
                size = f"{picture.shape[-1]} x {picture.shape[-2]} pixels"
                smaller = max(min(side or max(picture.shape[-2:]), max(picture.shape[-2:])) // 2, SMALLEST)
                if self.tile != "auto" or side == SMALLEST:
                    advice = "take tile auto, or smaller tiles" if self.tile != "auto" else "take another device"
                    raise TrainingError(f"a picture of {size} ran out of memory: {cause}. To go on, {advice}") from error
            release_memory(self.device)
            _LOG.warning("memory ran out: going on with tiles of %d pixels", smaller)
            side = smaller
            self._most = len(picture) * (side + 2 * (self.reach.halo if self.reach else 0)) ** 2

    def _first_side(self, picture: Tensor) -> int | None:
        height, width = picture.shape[-2:]
        if self.tile == 0 or (self.tile != "auto" and max(height, width) <= self.tile):
            return None
        if self.tile != "auto":
            return int(self.tile)
        if self._most is None:
            self._most = max(int(_SHARE * free_memory(self.device) / self._bytes_per_pixel()), SMALLEST**2)
        if len(picture) * height * width <= self._most:
            return None
        halo = self._measured(picture).halo
        return max(int((self._most / len(picture)) ** 0.5) - 2 * halo, SMALLEST)

    def _whole(self, picture: Tensor) -> Tensor:
        return self.forward(picture.to(self.device)).float().to(self.result_device)

    def _tiled(self, picture: Tensor, side: int) -> Tensor:
        reach = self._measured(picture)
        fade = 0 if reach.exact else reach.halo // 2
        rows, columns = (plan(length, side, reach.halo, fade, self.grid) for length in picture.shape[-2:])
        result: Tensor | None = None
        for number, row in enumerate(rows):
            for place, column in enumerate(columns, 1):
                output = self._whole(picture[..., row.start : row.stop, column.start : column.stop])
                if result is None:
                    result = output.new_zeros(*output.shape[:2], *(round(n * self.scale) for n in picture.shape[-2:]))
                top, left = round(row.start * self.scale), round(column.start * self.scale)
                weights = self._enlarged(row.weights, output.shape[-2])[:, None] * self._enlarged(
                    column.weights, output.shape[-1]
                )
                weights = weights.to(output.device)
                # Where a cut tile weighs nothing, what it has there must not count, be it not finite.
                result[..., top : top + output.shape[-2], left : left + output.shape[-1]] += torch.where(
                    weights > 0, output * weights, 0.0
                )
                if self.on_tile is not None:
                    self.on_tile(number * len(columns) + place, len(rows) * len(columns))
        assert result is not None
        return result

    def _enlarged(self, weights: Tensor, length: int) -> Tensor:
        places = ((torch.arange(length) + 0.5) / self.scale).long().clamp(max=len(weights) - 1)
        return weights[places]

    def _measured(self, picture: Tensor) -> Reach:
        if self.reach is None:
            self.reach = measure_reach(self._exactly, picture[:1], self.scale, self.grid, self.tolerance)
            kind = "as in the whole picture" if self.reach.exact else "fading into each other"
            _LOG.info("tiles %s, with a halo of %d pixels", kind, self.reach.halo)
        return self.reach

    def _exactly(self, picture: Tensor) -> Tensor:
        return self.exact_forward(picture.to(self.device)).cpu()

    def _bytes_per_pixel(self) -> float:
        """Memory that a pass takes for each pixel of its input, from the layers' inputs and outputs at a small size."""
        largest = 0

        def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            nonlocal largest
            taken = sum(t.numel() * t.element_size() for t in (*inputs, output) if isinstance(t, Tensor))
            largest = max(largest, taken)

        probe = torch.rand(1, self.channels, _PROBE, _PROBE, device=self.device)
        with _hooked(self.network, look), torch.no_grad():
            output = self.forward(probe)
        largest = max(largest, output.numel() * 4)
        return _HELD * largest / _PROBE**2


@contextmanager
def _hooked(network: nn.Module, hook: Any) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in network.modules() if not list(module.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken: of the GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        try:
            for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
        except (OSError, ValueError):
            pass
    return _UNKNOWN_MEMORY
