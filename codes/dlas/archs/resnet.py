"""ResNet-50 as a classifier, or as what other networks take features from; entries have torchvision's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlas.errors import ConfigurationError
from dlas.layers.byol import without_byol
from dlas.layers.classifiers import find_weights, read_tensors
from dlas.layers.classifiers.resnet import Bottleneck
from dlas.layers.recompute import recompute
from dlas.registry import ARCHS
from dlas.types import PositiveInt

_CLASSES = 1000
"""Of ImageNet."""


@ARCHS.register("resnet50", "resnet52")
class ResNet50(nn.Module):
    """ResNet-50 (which DL-Art-School's files call `resnet52`, too), or deeper and narrower ones of the same blocks.

    Layers: `conv1`, `bn1`, `relu`, `maxpool`, `layer1` to `layer4`, `avgpool`, `fc`. `path.pretrain` takes torchvision's files,
    and checkpoints of a `byol` whose `subnet` this network was.

    Args:
        pretrained: begin with torchvision's weights for ImageNet; they are looked for, never downloaded (docs/losses.md).
        custom_head_logits: number of classes; not given: the 1000 of ImageNet. With `pretrained` the last layer is new.
        blocks: blocks of each stage; ResNet-101 has [3, 4, 23, 3].
        width: channels of the first stage; features have 32 times as many.
        small_pictures: for pictures of 32 pixels or so: a 3 x 3 convolution at full size in place of the first layers, which
            make pictures four times smaller.

    Raises:
        ConfigurationError: `pretrained` with other `blocks`, `width` or `small_pictures`.
        CheckpointError: the weights are nowhere to be found.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1, with the stride at the 3x3
    convolution; for small pictures: Chen et al. 2020, "SimCLR" (arXiv:2002.05709), appendix B.9.
    """

    def __init__(
        self,
        *,
        pretrained: bool = False,
        custom_head_logits: PositiveInt | None = None,
        blocks: list[PositiveInt] = [3, 4, 6, 3],  # noqa: B006 -- defaults of options are literals
        width: PositiveInt = 64,
        small_pictures: bool = False,
    ) -> None:
        super().__init__()
        if pretrained and (blocks != [3, 4, 6, 3] or width != 64 or small_pictures):
            raise ConfigurationError("pretrained: there are weights for the blocks [3, 4, 6, 3] of width 64 alone; remove it")
        self.checkpointing = False
        stem = {"kernel_size": 3, "padding": 1} if small_pictures else {"kernel_size": 7, "stride": 2, "padding": 3}
        self.conv1 = nn.Conv2d(3, width, **stem, bias=False)  # type: ignore[arg-type]  # plain numbers
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_pictures else nn.MaxPool2d(3, 2, padding=1)
        channels = width
        for stage, count in enumerate(blocks):
            inside = width * 2**stage
            made = [
                Bottleneck(channels if place == 0 else 4 * inside, inside, 4 * inside, 2 if stage and place == 0 else 1)
                for place in range(count)
            ]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
            channels = 4 * inside
        self.stages = len(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, custom_head_logits or _CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if pretrained:
            self._begin_with_published_weights(new_head=custom_head_logits is not None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), less ImageNet's mean and divided by its deviation -> logits (B, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = recompute(self.get_submodule(f"layer{stage}"), x, when=self.checkpointing and self.training)
        return self.fc(self.avgpool(x).flatten(1))

    @staticmethod
    def rename_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Of a checkpoint of `byol` the online sub-network."""
        return without_byol(state_dict)

    def _begin_with_published_weights(self, new_head: bool) -> None:
        found = read_tensors(find_weights("resnet50", None, "pretrained of network 'resnet50'"))
        if new_head:
            found = {key: value for key, value in found.items() if not key.startswith("fc.")} | self.fc.state_dict(prefix="fc.")
        self.load_state_dict(found)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"blocks": [1, 1], "width": 4, "custom_head_logits": 5}, (torch.randn(2, 3, 32, 32),)
