"""Perceptual distances that were fitted to people's judgements, as losses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dlas.context import Context
from dlas.layers.lpips import DISTS, LPIPS, load_dists, load_lpips, rehearse_dists, rehearse_lpips
from dlas.losses.base import Loss, State
from dlas.losses.pictures import check_choice, pictures
from dlas.registry import LOSSES
from dlas.types import StateIn


@LOSSES.register("lpips")
class LPIPSLoss(Loss):
    """LPIPS (version 0.1) of the generated pictures from the true ones.

    Needs two files, which are looked for before the first step (docs/losses.md): the weights of the classifier and the linear
    heads, which the package `lpips` ships. Computed in float32.

    Args:
        real: key of the true pictures, (B, 3, H, W) in [0, 1].
        fake: key of the generated pictures, same shape.
        net: `vgg` (VGG16; what its authors advise for training) or `alex` (AlexNet).
        load_path: file of the classifier's weights with torchvision's names. Not given: looked for.
        heads_path: file of the heads with the authors' names. Not given: looked for.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
    """

    network: LPIPS

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        net: Literal["vgg", "alex"] = "vgg",
        load_path: str | None = None,
        heads_path: str | None = None,
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        check_choice("lpips", "network", net, ("vgg", "alex"))
        self.real = real
        self.fake = fake
        self.net = net
        self.files = (load_path, heads_path)
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        """Reads the weights."""
        self.network = load_lpips(self.net, *self.files, "the loss 'lpips'", device, self.random_weights)

    def rehearse(self) -> None:
        """Builds the network without its weights."""
        self.network = rehearse_lpips(self.net)

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("lpips", state, self.real, self.fake)
        with torch.autocast(fake.device.type, enabled=False):
            distances: Tensor = self.network(fake, real)
        return distances.mean()


@LOSSES.register("dists", "DISTSLoss")
class DISTSLoss(Loss):
    """DISTS of the generated pictures from the true ones: forgives other samples of the same texture.

    Needs two files, which are looked for before the first step (docs/losses.md): the weights of VGG16, and alpha and beta,
    which the package `DISTS-pytorch` ships. Computed in float32.

    Args:
        real: key of the true pictures, (B, 3, H, W) in [0, 1].
        fake: key of the generated pictures, same shape.
        load_path: file of VGG16's weights with torchvision's names. Not given: looked for.
        weights_path: file of `alpha` and `beta`. Not given: looked for.
        random_weights: for tests of programs only: random weights, which a warning in the log says. It measures nothing.

    Source: Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", 2020.
    """

    network: DISTS

    def __init__(
        self,
        *,
        real: StateIn,
        fake: StateIn,
        load_path: str | None = None,
        weights_path: str | None = None,
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        self.real = real
        self.fake = fake
        self.files = (load_path, weights_path)
        self.random_weights = random_weights

    def prepare(self, device: torch.device) -> None:
        """Reads the weights."""
        self.network = load_dists(*self.files, "the loss 'dists'", device, self.random_weights)

    def rehearse(self) -> None:
        """Builds the network without its weights."""
        self.network = rehearse_dists()

    def forward(self, state: State, context: Context) -> Tensor:
        real, fake = pictures("dists", state, self.real, self.fake, channels=3)
        with torch.autocast(fake.device.type, enabled=False):
            distances: Tensor = self.network(fake, real)
        return distances.mean()
