"""Diffusion and flow models: noise levels, targets, weightings, times, samplers; networks are arguments."""

from __future__ import annotations

from dlas.diffusion.denoising import Denoised, Denoiser, NetworkDenoiser
from dlas.diffusion.levels import Level, Prediction, convert, diffuse, target, to_eps, to_x0
from dlas.diffusion.processes import Grid, Process, create_process

__all__ = [
    "Denoised",
    "Denoiser",
    "Grid",
    "Level",
    "NetworkDenoiser",
    "Prediction",
    "Process",
    "convert",
    "create_process",
    "diffuse",
    "target",
    "to_eps",
    "to_x0",
]
