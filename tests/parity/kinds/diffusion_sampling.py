"""Steps and loops of samplers, with guidance, and conditioning-free guidance."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from dlas.diffusion import Grid, NetworkDenoiser, Process, create_process
from dlas.diffusion.denoising import Denoiser
from dlas.diffusion.guidance import ClassifierFree, ClassifierGuidance, Guidance, clip
from dlas.diffusion.samplers import create_sampler
from dlas.diffusion.samplers.ancestral import Ancestral
from dlas.diffusion.samplers.ddim import encode
from parity.harness import Fixture, compare, handles


def toy(fixture: Fixture, learned: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The network that the file describes: `x*(0.8+0.2*cos(0.01*t))` and `sin(x+0.001*t)`."""
    number = r"(-?[\d.]+(?:e-?\d+)?)"
    pattern = rf"x\*\({number}\+{number}\*cos\({number}\*t\)\); v = sin\(x\+{number}\*t\)"
    offset, size, rate, shift = (float(each) for each in re.search(pattern, fixture.json["model"]).groups())

    def network(x: Tensor, times: Tensor) -> Tensor:
        t = times.reshape(-1, *(1,) * (x.dim() - 1))
        eps = x * (offset + size * torch.cos(rate * t))
        return torch.cat((eps, torch.sin(x + shift * t)), dim=1) if learned else eps

    return network


def setting(fixture: Fixture, schedule: str, variance: str, rescale: str, steps: int) -> tuple[Process, NetworkDenoiser]:
    options = {"type": "vp", "schedule": schedule, "steps": steps, "rescale_timesteps": rescale == "rescale1"}
    process = create_process(options)
    learned = variance.startswith("learned")
    return process, NetworkDenoiser(toy(fixture, learned), process, learned_variance=learned)


def entries(fixture: Fixture, *parts: str) -> Iterable[str]:
    return (name for name in fixture.outputs if any(part in name for part in parts))


@handles("sr/golden_diffusion_steps*", cases=lambda fixture: fixture.outputs)
def check_step(fixture: Fixture, case: str) -> None:
    schedule, variance, rescale, method = case.split(".", 3)
    tensors, steps = fixture.tensors, fixture.json["T"]
    process, denoise = setting(fixture, schedule, variance, rescale, steps)
    grid = process.grid([float(t) for t in reversed(range(steps))])
    denoise.transform = None if "clip0" in method else clip()
    if method == "denoised_fn_tanh":
        denoise.transform = torch.tanh
    for row, t in enumerate(tensors["in.t"].tolist()):
        one = slice(row, row + 1)
        actual = step(method, variance, process, denoise, grid, steps - 1 - t, {n: v[one] for n, v in tensors.items()})
        compare(actual, tensors[f"out.{case}"][one], "output", f"timestep {t}")


def step(
    method: str, variance: str, process: Process, denoise: Denoiser, grid: Grid, k: int, given: Mapping[str, Tensor]
) -> Tensor:
    """One sample after the k-th step of the grid, or what was seen in it."""
    x, gradient = given["in.x"], given["in.grad"]
    if "cond_fn" in method:
        denoise = ClassifierGuidance(denoise, process, lambda x, times: gradient)
    if method == "ddim_reverse":  # from this level one up; over the last timestep, to pure noise
        above = (grid.times[k - 1], grid.alphas[k - 1], grid.sigmas[k - 1]) if k else (float("nan"), 0.0, 1.0)
        own = (grid.times[k], grid.alphas[k], grid.sigmas[k])
        return encode(denoise, x, Grid(*zip(above, own, strict=True), process))
    if eta := re.match(r"ddim\.eta([\d.]*\d)", method):
        single = Grid(grid.times[k : k + 2], grid.alphas[k : k + 2], grid.sigmas[k : k + 2], process)
        sampler = create_sampler({"type": "ddim", "eta": float(eta[1])})
        return sampler.run(denoise, x, single, lambda _: given["in.noise"])
    seen = denoise(x, grid.times[k])
    if "pred_xstart" in method:
        return seen.x0
    return Ancestral(variance=variance).step(seen, x, grid, k, lambda _: given["in.noise"])


@handles("sr/golden_diffusion_loops*", cases=lambda fixture: entries(fixture, "p_sample_loop", "ddim_loop"))
def check_loop(fixture: Fixture, case: str) -> None:
    schedule, variance, spacing, rescale, method = case.split(".", 4)
    tensors, steps = fixture.tensors, fixture.json["diffusion_steps"]
    process, denoise = setting(fixture, schedule, variance, rescale, steps)
    denoise.transform = clip()
    eta = re.search(r"eta([\d.]+)", method)
    sampler = create_sampler({"type": "ddim", "eta": float(eta[1])}) if eta else Ancestral(variance=variance)
    grid = process.grid(sorted(sections(spacing, steps), reverse=True))
    actual = sampler.run(denoise, tensors["in.x_T"], grid, lambda k: tensors[f"in.noise.{k}"])
    compare(actual, tensors[f"out.{case}"], "output")


def sections(spacing: str, steps: int) -> list[float]:
    """Timesteps that are kept: "ddimN" of one whole stride, or so many of each of equal sections, ends included."""
    if spacing.startswith("ddim"):
        count = int(spacing.removeprefix("ddim"))
        stride = next(each for each in range(1, steps) if len(range(0, steps, each)) == count)
        return [float(t) for t in range(0, steps, stride)]
    counts = [int(each) for each in spacing.split(",")]
    times, start = [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        times += [float(start + round(j * (size - 1) / max(1, count - 1))) for j in range(count)]
        start += size
    return times


@handles("sr/golden_dlas_diffusion*", cases=lambda fixture: entries(fixture, "cfree_"))
def check_conditioning_free(fixture: Fixture, case: str) -> None:
    """The mean of a step, guided by (1 + k) with - k without."""
    tensors, steps = fixture.tensors, fixture.json["T"]
    k = float(re.search(r"k=([\d.]*\d)", fixture.json["description"])[1])
    time = int(re.search(r"\.t(\d+)\.", case)[1])
    process = create_process({"type": "vp", "schedule": fixture.json["schedule"], "steps": steps})
    guided, plain = tensors["in.model_output"], tensors["in.model_output_nocond"]

    def network(x: Tensor, times: Tensor, conditional: Tensor) -> Tensor:
        return torch.where(conditional[:, None, None], guided[:1], plain)

    denoise = ClassifierFree(
        network,
        process,
        conditions={"conditional": torch.tensor([True])},
        unconditional={"conditional": torch.tensor([False])},
        learned_variance=True,
        transform=clip(),
        guidance=Guidance(1 + k, ramp=".cfree_ramp." in f".{case}"),
    )
    grid = process.grid([float(t) for t in reversed(range(steps))])
    x = tensors["in.x0"][:1]
    mean = Ancestral().step(denoise(x, float(time)), x, grid, steps - 1 - time, lambda _: torch.zeros_like(x))
    compare(mean, tensors[f"out.{case}"], "output")
