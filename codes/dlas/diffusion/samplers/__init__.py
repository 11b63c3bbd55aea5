"""Samplers: ways from noise to data with a denoiser; one file each."""

from __future__ import annotations

from dlas.diffusion.samplers.base import Noise, Sampler, Stage, create_sampler

__all__ = ["Noise", "Sampler", "Stage", "create_sampler"]
