"""Parts of the second-order degradation of Real-ESRGAN."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from dlas.degradations import kernels
from dlas.degradations.base import Resize
from dlas.degradations.device import add_noise, add_poisson_noise, apply, degrade, filter2d, gaussian, usm_sharpen
from dlas.degradations.jpeg import jpeg
from parity.harness import Fixture, compare, handles


def cases(fixture: Fixture) -> Iterable[str]:
    yield from (f"kernel.{kernel['name']}" for kernel in fixture.json["kernels"])
    yield from fixture.outputs


def kernel_of(function: str, arguments: dict[str, float]) -> torch.Tensor:
    if function == "circular_lowpass_kernel":
        kernel = kernels.circular_lowpass(int(arguments["kernel_size"]), arguments["cutoff"])
        return torch.from_numpy(kernels.padded(kernel, int(arguments["pad_to"])))
    sigma_x, theta = arguments["sig_x"], arguments["theta"]
    sigma_y = sigma_x if arguments["isotropic"] else arguments["sig_y"]
    shape = (int(arguments["kernel_size"]), sigma_x, sigma_y, theta)
    if function == "bivariate_plateau":
        return torch.from_numpy(kernels.bivariate_plateau(*shape, arguments["beta"]))
    return torch.from_numpy(kernels.bivariate_gaussian(*shape, arguments.get("beta", 1.0)))


@handles("golden_realesrgan_degradations*", cases=cases)
def check(fixture: Fixture, case: str) -> None:
    tensors = fixture.tensors
    if case.startswith("kernel."):
        wanted = next(k for k in fixture.json["kernels"] if f"kernel.{k['name']}" == case)
        compare(kernel_of(wanted["function"], wanted["args"]), tensors[case], "float64", case)
        return
    image, sharp = tensors["in.img"], tensors["in.img_usm"]
    quality = tensors["in.jpeg_quality"]
    if case.startswith("filter2D"):
        blurs = next(tensor for name, tensor in tensors.items() if name.startswith("in.kernels"))
        found = filter2d(image, blurs[:1] if case.endswith("shared") else blurs)
    elif case == "usm_kernel":
        line = gaussian(tensors["out.usm_kernel"].shape[-1]).float()
        found = torch.outer(line, line)[None]
    elif case == "usm":
        found = usm_sharpen(sharp)
    elif told := re.fullmatch(r"usm_weight([\d.]+)_thr([\d.]+)", case):
        found = usm_sharpen(sharp, weight=float(told[1]), threshold=float(told[2]))
    elif case == "jpeg":
        found = jpeg(image, quality)
    elif case.startswith("jpeg_q"):
        found = jpeg(image, torch.full((len(image),), float(case.removeprefix("jpeg_q"))))
    elif case.startswith("jpeg_differentiable"):
        source = image.clone().requires_grad_()
        value = float(case.removeprefix("jpeg_differentiable_q").split(".")[0])
        found = jpeg(source, torch.full((len(image),), value), differentiable=True)
        if case.endswith("grad_of_sum"):
            (gradient,) = torch.autograd.grad(found.sum(), source)
            compare(gradient, tensors[f"out.{case}"], "gradient", case)
            return
        found = found.detach()
    elif case == "gaussian_noise_clip":
        gray = tensors["in.gray"].view(-1, 1, 1, 1)
        noise = gray * tensors["in.randn_gray"] + (1 - gray) * tensors["in.randn_color"]
        found = add_noise(image, tensors["in.sigma"].view(-1, 1, 1, 1), noise)
    elif case == "poisson_noise_clip":
        settings = zip(image.split(1), tensors["in.poisson_scale"], tensors["in.gray"], strict=True)
        found = torch.cat(
            [add_poisson_noise(i, float(s), bool(g), draw=lambda counts: (counts + 0.25).floor()) for i, s, g in settings]
        )
    elif case.startswith("resize."):
        _, mode, size = case.split(".", 2)
        height, width = tensors[f"out.{case}"].shape[-2:]
        factor = float(size.removeprefix("scale")) if size.startswith("scale") else None
        found = apply(image, Resize(height, width, mode, factor), torch.Generator())
    else:
        assert case == "quantised"
        shape = tensors["out.quantised"].shape
        shrunk = next(t for n, t in tensors.items() if n.startswith("out.resize.bicubic.scale") and t.shape == shape)
        found = degrade(shrunk, [[]] * len(shrunk), [0] * len(shrunk))
    compare(found, tensors[f"out.{case}"], "output", case)
