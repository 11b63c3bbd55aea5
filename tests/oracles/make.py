"""Writes values.json with the libraries named in README.md: ``python make.py BASICSR``, BasicSR 1.4.2's source."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import cv2
import DISTS_pytorch.DISTS_pt as dists_module
import focal_frequency_loss
import kornia
import lpips
import numpy as np
import piq
import pytorch_msssim
import scipy.ndimage
import torch
import torchvision
from inputs import heads, pair, pristine, weights
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def by_rule(network: nn.Module) -> nn.Module:
    network.load_state_dict(weights(network.state_dict()))
    return network.eval().requires_grad_(False)


def of_file(path: Path, name: str) -> types.ModuleType:
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def summary(features: torch.Tensor) -> list[float]:
    """Mean, mean of squares and one number in the middle."""
    flat = features.double().flatten()
    return [flat.mean().item(), flat.square().mean().item(), flat[len(flat) // 2 + 7].item()]


def entries(network: nn.Module) -> str:
    """Checksum of names and shapes of a state dict, without the last layer's."""
    told = [f"{k} {list(v.shape)}" for k, v in network.state_dict().items() if not k.startswith(("fc.", "classifier."))]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def similarity() -> dict:
    true, made = pair()
    small = [each[..., :90, :120] for each in (true, made)]
    return {
        "ssim": pytorch_msssim.ssim(made, true, data_range=1.0, size_average=False).tolist(),
        "ms_ssim": pytorch_msssim.ms_ssim(made, true, data_range=1.0, size_average=False).tolist(),
        "ssim_piq": piq.ssim(made.double(), true.double(), downsample=False, reduction="none").tolist(),
        "tv": kornia.losses.total_variation(made, reduction="sum").tolist(),
        "sobel": (kornia.filters.spatial_gradient(small[1]) - kornia.filters.spatial_gradient(small[0])).abs().mean().item(),
    }


def frequency() -> dict:
    true, made = pair(48, 64)
    variants = {
        "plain": {},
        "alpha_2": {"alpha": 2.0},
        "patches": {"patch_factor": 4},
        "average": {"ave_spectrum": True},
        "log": {"log_matrix": True},
        "batch": {"batch_matrix": True},
    }
    return {k: focal_frequency_loss.FocalFrequencyLoss(**v)(made, true).item() for k, v in variants.items()}


def classifiers() -> dict:
    true, _ = pair(64, 96)
    x = (true - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    models = torchvision.models
    found = {}
    layered = {
        "vgg16": (models.vgg16, {"relu1_2": 4, "relu3_3": 16, "relu5_3": 30}),
        "vgg19": (models.vgg19, {"conv2_2": 8, "conv5_4": 35}),
        "alexnet": (models.alexnet, {"relu1": 2, "relu5": 12}),
        "mobilenet_v2": (models.mobilenet_v2, {"features.3": 4, "features.17": 18, "features.18": 19}),
    }
    for name, (make, layers) in layered.items():
        network = by_rule(make())
        found[name] = {layer: summary(network.features[:count](x)) for layer, count in layers.items()}
    for name, make in {"resnet50": models.resnet50, "wide_resnet": models.wide_resnet50_2}.items():
        network = by_rule(make())
        stages = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"]
        features, found[name] = x, {}
        for stage in stages:
            features = getattr(network, stage)(features)
            if stage in ("relu", "layer1", "layer3"):
                found[name][stage] = summary(features)
    found["resnet101_entries"] = entries(models.resnet101())
    return found


def learned() -> dict:
    true, made = pair(96, 128)
    found = {}
    for net, channels in {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}.items():
        network = lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)
        published = by_rule(torchvision.models.alexnet() if net == "alex" else torchvision.models.vgg16())
        convolutions = [m for m in network.net.modules() if isinstance(m, nn.Conv2d)]
        for own, other in zip(convolutions, [m for m in published.features if isinstance(m, nn.Conv2d)], strict=True):
            own.load_state_dict(other.state_dict())
        for line, head in zip(network.lins, heads(channels), strict=True):
            line.model[-1].weight.data.copy_(head[None, :, None, None])
        found[net] = network(made, true, normalize=True).flatten().tolist()
    dists_module.models = types.SimpleNamespace(vgg16=lambda pretrained: by_rule(torchvision.models.vgg16()))
    network = dists_module.DISTS(load_weights=False)
    alpha, beta = heads((1475,))[0], heads((1475,))[0].flip(0)
    network.alpha.data, network.beta.data = alpha.view(1, -1, 1, 1), beta.view(1, -1, 1, 1)
    found["dists"] = network(made, true).tolist()
    return found


def inception(folder: Path) -> dict:
    file = folder / "inception-by-rule.pth"
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    torch.save({}, file)
    network = FeatureExtractorInceptionV3("inception", ["2048"], str(file))
    del FeatureExtractorInceptionV3.load_state_dict
    by_rule(network)
    true, _ = pair(299, 299)
    return {"features": summary(network((true * 255).round().byte())[0])}


def basicsr(folder: Path) -> dict:
    artifacts = of_file(folder / "basicsr/losses/loss_util.py", "loss_util")
    true, made = pair(40, 56)
    between = 0.7 * made + 0.3 * true
    between[:, :, :20] = made[:, :, :20] * 1.5 - 0.5 * true[:, :, :20]
    weight = artifacts.get_refined_artifact_map(true, made, between, 7)
    found = {"ldl": (weight * made - weight * true).abs().mean().item()}
    stubs = ("basicsr", "basicsr.utils", "basicsr.metrics", "scipy.ndimage.filters")
    sys.modules |= {name: types.ModuleType(name) for name in stubs}
    sys.modules["scipy.ndimage.filters"].convolve = scipy.ndimage.convolve
    registry = types.ModuleType("registry")
    registry.METRIC_REGISTRY = types.SimpleNamespace(register=lambda: lambda function: function)
    sys.modules["basicsr.utils.registry"] = registry
    colors = of_file(folder / "basicsr/utils/color_util.py", "color_util")
    sys.modules["basicsr.utils"].bgr2ycbcr = colors.bgr2ycbcr
    for name in ("utils.matlab_functions", "metrics.metric_util", "metrics.niqe"):
        sys.modules[f"basicsr.{name}"] = of_file(folder / f"basicsr/{name.replace('.', '/')}.py", f"basicsr.{name}")
    niqe = sys.modules["basicsr.metrics.niqe"]
    window = np.load(folder / "basicsr/metrics/niqe_pris_params.npz")["gaussian_window"]
    picture = (pair(210, 300)[0][0] * 255).round().permute(1, 2, 0).numpy()[..., ::-1]
    luma = niqe.to_y_channel(picture)[4:-4, 4:-4, 0].round()
    found["niqe"] = niqe.niqe(luma, *pristine(), window)
    return found


def main() -> None:
    folder = Path(__file__).resolve().parent
    source = Path(sys.argv[1])
    values = {
        "similarity": similarity(),
        "focal_frequency": frequency(),
        "classifiers": classifiers(),
        "learned": learned(),
        "inception": inception(Path(sys.argv[2]) if len(sys.argv) > 2 else Path("/tmp")),
        "basicsr": basicsr(source),
    }
    (folder / "values.json").write_text(json.dumps(values, indent=1) + "\n")
    print(cv2.__version__, torch.__version__, torchvision.__version__, kornia.__version__, piq.__version__)


if __name__ == "__main__":
    main()
