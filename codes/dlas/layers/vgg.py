"""The convolutions of VGG19, as an extractor of features; its entries have torchvision's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LAYOUT = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M")
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class VGG19Features(nn.Module):
    """The layers of VGG19 up to its sixteenth convolution (conv5_4, layer 34), before that one's ReLU.

    Its weights are named as in torchvision's files: ``features.<layer>.weight`` and ``.bias``. They are random until loaded.

    Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1
    (column E); as a perceptual distance before activation: Wang et al., ESRGAN, ECCV workshops 2018, section 3.2.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for item in _LAYOUT[:-1]:
            if isinstance(item, int):
                layers += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU()]
                channels = item
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of pictures.

        Args:
            x: (B, 3, H, W), RGB in [0, 1], H and W at least 16.

        Returns:
            (B, 512, H / 16, W / 16).
        """
        features: Tensor = self.features((x - self.mean) / self.deviation)
        return features
