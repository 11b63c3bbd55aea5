"""A part of the timesteps of a discrete process as a process of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlas.diffusion.processes import Timesteps
from dlas.diffusion.tables import Table, on_host
from dlas.errors import ConfigurationError


def spaced_timesteps(steps: int, sections: str | Sequence[int]) -> list[int]:
    """Timesteps to keep.

    Args:
        steps: T; timesteps are 0 .. T - 1.
        sections: how many to keep of each of as many equal sections, as a list or a text with commas ("100,50,10"): the first
            and the last of the section and others evenly between, rounded half to even. Or "ddimN": N of them with one whole
            stride, from 0.

    Returns:
        Timesteps in ascending order.

    Raises:
        ConfigurationError: the text cannot be read, a section has fewer timesteps than are to be kept, or there is no such
            stride.

    Source: Nichol and Dhariwal 2021 (arXiv:2102.09672), section 4; `ddimN`: Song et al. 2021 (arXiv:2010.02502).
    """
    if isinstance(sections, str):
        if sections.startswith("ddim"):
            return _strided(steps, _numbers(sections.removeprefix("ddim"), sections)[0])
        sections = _numbers(sections, sections)
    share, rest = divmod(steps, len(sections))
    kept: list[int] = []
    start = 0
    for index, count in enumerate(sections):
        size = share + (index < rest)
        if not 0 <= count <= size:
            raise ConfigurationError(
                f"cannot keep {count} timesteps of section {index + 1} of {len(sections)}, which has {size} of the {steps}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            kept.append(start + round(place))
            place += stride
        start += size
    return kept


def _numbers(text: str, given: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"respacing is numbers of timesteps (250 or '100,50,10') or 'ddimN' (ddim50); given: {given!r}"
        ) from None


def _strided(steps: int, count: int) -> list[int]:
    for stride in range(1, steps + 1):
        if len(range(0, steps, stride)) == count:
            return list(range(0, steps, stride))
    raise ConfigurationError(
        f"ddim{count}: cannot create exactly {count} of {steps} steps with an integer stride; "
        f"take a number that divides {steps}, or '{count}' without ddim"
    )


class Respaced(Timesteps):
    """Some timesteps of a process, counted from 0; the network is told what it was told of them before.

    Args:
        process: whose timesteps they are.
        timesteps: those to keep, ascending.
    """

    def __init__(self, process: Timesteps, timesteps: Sequence[int]) -> None:
        with on_host():
            kept = torch.tensor(timesteps)
            super().__init__(process.alpha_bars[kept], process.scale, process.sigma_data)
        self.process = process
        self._kept = Table(kept)

    def conditioning(self, times: Tensor) -> Tensor:
        """What the whole process tells of the original timesteps."""
        return self.process.conditioning(self._kept.on(times.device)[times.long()])
