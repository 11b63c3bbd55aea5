"""Learned perceptual distances of two pictures: LPIPS and DISTS."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlas.errors import CheckpointError
from dlas.layers.classifiers import Classifier, build_classifier, find_weights, load_classifier, read_tensors

BACKBONES = {
    "alex": ("alexnet", ("relu1", "relu2", "relu3", "relu4", "relu5"), (64, 192, 384, 256, 256)),
    "vgg": ("vgg16", ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"), (64, 128, 256, 512, 512)),
}
"""Name: the classifier, its layers, their channels."""

_DISTS_LAYERS = BACKBONES["vgg"][1]
_DISTS_CHANNELS = (3, *BACKBONES["vgg"][2])


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1.

    Args:
        backbone: classifier that gives the layers of `BACKBONES`, in evaluation mode.
        heads: weight of each channel, one tensor (C,) a layer.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1.
    """

    def __init__(self, backbone: Classifier, heads: list[Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ParameterList([nn.Parameter(head, requires_grad=False) for head in heads])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] twice -> (N,), 0 for equal pictures."""
        # The authors scale to [-1, 1] and by constants of their own, which together are ImageNet's mean and deviation.
        normalize = self.backbone.normalize
        one, other = self.backbone(normalize(first)), self.backbone(normalize(second))
        terms = []
        for name, head in zip(one, self.heads, strict=True):
            difference = (_unit(one[name]) - _unit(other[name])).square()
            terms.append((difference * head[:, None, None]).sum(1).mean((1, 2)))
        return torch.stack(terms).sum(0)


def _unit(features: Tensor) -> Tensor:
    """Each place's vector of features brought to length 1."""
    # The root of the squares with the constant outside, as in the authors' code, has no gradient where all features are 0.
    return features / (features.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt() + 1e-10)


class DISTS(nn.Module):
    """Deep image structure and texture similarity.

    Args:
        backbone: VGG16 that gives the five layers, in evaluation mode. Its max pooling is replaced by an L2 pooling.
        alpha: weight of texture for each of 1475 channels (three of the picture itself first), (1475,).
        beta: weight of structure, (1475,).

    Source: Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", 2020, eq. 3 to 7.
    """

    filter: Tensor

    def __init__(self, backbone: Classifier, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        total = alpha.sum() + beta.sum()
        self.alpha = nn.Parameter(alpha / total, requires_grad=False)
        self.beta = nn.Parameter(beta / total, requires_grad=False)
        hanning = torch.tensor([0.5, 1.0, 0.5])
        self.register_buffer("filter", torch.outer(hanning, hanning) / 4, persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] twice -> (N,), 0 for equal pictures."""
        score = torch.zeros(len(first), device=first.device)
        sizes = list(_DISTS_CHANNELS)
        parts = zip(self._features(first), self._features(second), self.alpha.split(sizes), self.beta.split(sizes), strict=True)
        for x, y, alpha, beta in parts:
            mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
            texture = (2 * mean_x * mean_y + 1e-6) / (mean_x.square() + mean_y.square() + 1e-6)
            centred_x, centred_y = x - mean_x[..., None, None], y - mean_y[..., None, None]
            covariance = (centred_x * centred_y).mean((2, 3))
            variances = centred_x.square().mean((2, 3)) + centred_y.square().mean((2, 3))
            structure = (2 * covariance + 1e-6) / (variances + 1e-6)
            score = score + (alpha * texture + beta * structure).sum(1)
        return 1 - score

    def _features(self, image: Tensor) -> list[Tensor]:
        found = [image]
        x = self.backbone.normalize(image)
        for name, stage in self.backbone.stages():
            x = self._pool(x) if name.startswith("pool") else stage(x)
            if name in _DISTS_LAYERS:
                found.append(x)
        return found

    def _pool(self, x: Tensor) -> Tensor:
        kernel = self.filter.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def load_lpips(
    net: str, load_path: str | None, heads_path: str | None, asked_by: str, device: torch.device, random_weights: bool = False
) -> LPIPS:
    """LPIPS with its published weights, frozen.

    Args:
        net: `alex` or `vgg`.
        load_path: file of the classifier's weights; None looks for it.
        heads_path: file of the linear heads with the authors' names; None looks for it.
        asked_by: what needs it, for messages.
        device: where it is to live.
        random_weights: see `load_classifier`; heads of ones.

    Raises:
        CheckpointError: weights are missing or are others.
    """
    name, layers, channels = BACKBONES[net]
    heads = [torch.ones(count) for count in channels]
    if not random_weights:
        path = find_weights(f"lpips_{net}", heads_path, asked_by, "heads_path")
        tensors = read_tensors(path)
        for place, count in enumerate(channels):
            key = f"lin{place}.model.1.weight"
            if key not in tensors or tensors[key].numel() != count:
                raise CheckpointError(f"{path}: not the heads of LPIPS for {net}: {key} is missing or of another shape")
            heads[place] = tensors[key].flatten().float()
    return LPIPS(load_classifier(name, layers, load_path, asked_by, device, random_weights), heads).to(device)


def load_dists(
    load_path: str | None, weights_path: str | None, asked_by: str, device: torch.device, random_weights: bool = False
) -> DISTS:
    """DISTS with its published weights, frozen.

    Args:
        load_path: file of VGG16's weights; None looks for it.
        weights_path: file of `alpha` and `beta`; None looks for it.
        asked_by: what needs it, for messages.
        device: where it is to live.
        random_weights: see `load_classifier`; alpha and beta of ones.

    Raises:
        CheckpointError: weights are missing or are others.
    """
    total = sum(_DISTS_CHANNELS)
    alpha = beta = torch.ones(total)
    if not random_weights:
        path = find_weights("dists", weights_path, asked_by, "weights_path")
        tensors = read_tensors(path)
        if any(key not in tensors or tensors[key].numel() != total for key in ("alpha", "beta")):
            raise CheckpointError(f"{path}: not the weights of DISTS: expected alpha and beta of {total} numbers each")
        alpha, beta = tensors["alpha"].flatten().float(), tensors["beta"].flatten().float()
    return DISTS(load_classifier("vgg16", _DISTS_LAYERS, load_path, asked_by, device, random_weights), alpha, beta).to(device)


def rehearse_lpips(net: str) -> LPIPS:
    """LPIPS without weights, for a rehearsal without data."""
    name, layers, channels = BACKBONES[net]
    return LPIPS(build_classifier(name, layers), [torch.ones(count) for count in channels])


def rehearse_dists() -> DISTS:
    """DISTS without weights, for a rehearsal without data."""
    ones = torch.ones(sum(_DISTS_CHANNELS))
    return DISTS(build_classifier("vgg16", _DISTS_LAYERS), ones, ones)
