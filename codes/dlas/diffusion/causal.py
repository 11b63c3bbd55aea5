"""Timesteps that grow along a sequence, so that a model may finish its beginning while the rest is noise still."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_timesteps(
    times: Tensor, length: int, steps: int, slope: float, jitter: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One timestep for each place of a sequence, `slope` more at each place.

    The timesteps 0 .. T are stretched over T + slope (length - 1), so that the whole sequence is clean at the one end and noise
    at the other.

    Args:
        times: timesteps (B,) of the whole sequence.
        length: L, places.
        steps: T of the process.
        slope: timesteps from a place to the next.
        jitter: (B,) or without dimensions, in [-1, 1]: moves sequences by up to one of the stretched steps, so that
            timesteps between them are trained, too.

    Returns:
        Timesteps (B, L) in 0 .. T - 1; and (B, L), False at places where they lie outside of that: they are clean or pure noise
        and do not count.
    """
    extra = slope * (length - 1)
    start = torch.div(times.double() * (steps + extra), steps, rounding_mode="floor") - extra
    if jitter is not None:
        start = (start + jitter * (steps + extra) / steps).clamp(-extra, steps)
    places = start.unsqueeze(1) + torch.arange(length, device=times.device) * slope
    found = places.clamp(-1, steps).long()
    return found.clamp(0, steps - 1), (found >= 0) & (found < steps)
