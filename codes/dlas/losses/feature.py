"""A perceptual loss: distance between what a trained classifier sees in two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from dlas.context import Context
from dlas.errors import CheckpointError
from dlas.layers.vgg import VGG19Features
from dlas.losses.base import Loss, State
from dlas.losses.criteria import distance
from dlas.registry import LOSSES
from dlas.types import StateIn

VGG19_FILE = "vgg19-dcbb9e9d.pth"
"""Name of the file of weights trained on ImageNet that torchvision publishes."""


@LOSSES.register("feature")
class FeatureLoss(Loss):
    """Distance between the features of two pictures, before the last ReLU of VGG19's convolutions (conv5_4).

    The network is fixed: it passes gradients to `fake` and does not learn. Its weights are never downloaded and never random:
    they are read before the first step of a run in which the loss can be on, and that run does not begin without them.

    Args:
        which_model_F: the network: `vgg` is VGG19 trained on ImageNet.
        criterion: `l1` mean |d|; `l2` mean d^2.
        real: key of the true pictures, (B, 3, H, W) in [0, 1].
        fake: key of the generated pictures, same shape.
        load_path: file of the network's weights with torchvision's names (.pth or .safetensors); by default torchvision's
            `vgg19-dcbb9e9d.pth` in the folder where torch keeps downloaded files (`torch.hub.get_dir()`/checkpoints).
    """

    network: VGG19Features

    def __init__(
        self,
        *,
        which_model_F: Literal["vgg"],  # noqa: N803  # the name of the option
        criterion: Literal["l1", "l2"],
        real: StateIn,
        fake: StateIn,
        load_path: str | None = None,
    ) -> None:
        super().__init__()
        self.name = which_model_F
        self.criterion = criterion
        self.real = real
        self.fake = fake
        self.path = Path(load_path).expanduser() if load_path else Path(torch.hub.get_dir()) / "checkpoints" / VGG19_FILE

    def prepare(self, device: torch.device) -> None:
        """Reads the network's weights.

        Raises:
            CheckpointError: the file is missing or holds another network.
        """
        network = VGG19Features()
        weights = self._read()
        wanted = network.state_dict()
        wrong = [key for key, value in wanted.items() if key not in weights or weights[key].shape != value.shape]
        if wrong:
            raise CheckpointError(
                f"{self.path}: not the weights of VGG19 in torchvision's names: {wrong[0]} is missing or of another shape"
            )
        network.load_state_dict({key: weights[key] for key in wanted})
        self.network = network.requires_grad_(False).eval().to(device)

    def forward(self, state: State, context: Context) -> Tensor:
        fake = self.network(state[self.fake].float())
        with torch.no_grad():
            real = self.network(state[self.real].float())
        return distance(self.criterion, fake, real)

    def _read(self) -> dict[str, Tensor]:
        if not self.path.is_file():
            raise CheckpointError(
                f"the loss 'feature' needs the weights of the network '{self.name}', and there is no file {self.path}; "
                f"fetch torchvision's file (https://download.pytorch.org/models/{VGG19_FILE}) and put it there, or name it as "
                "'load_path'"
            )
        try:
            if self.path.suffix == ".safetensors":
                return load_file(self.path)
            weights = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever is wrong with a file shows as another kind of error
            raise CheckpointError(f"{self.path}: cannot be read as weights: {error}") from error
        if not isinstance(weights, dict):
            raise CheckpointError(f"{self.path}: holds a {type(weights).__name__}, not a state dict")
        return {key: value for key, value in weights.items() if isinstance(value, Tensor)}
