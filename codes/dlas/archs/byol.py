"""BYOL: representations learned from pictures without labels, by predicting one view of a picture from another.

Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv:2006.07733), section 3; names of layers as in lucidrains' byol-pytorch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.byol import BootstrapNetwork, Encoder, mlp
from dlas.layers.views import DRAWS, ViewRules, draw, make_views
from dlas.registry import ARCHS
from dlas.types import Fraction, NetworkOptions, PositiveInt


class ProjectedEncoder(Encoder):
    """A vector for each picture: the hidden layer, flattened, and a projector behind it."""

    def __init__(
        self, net: nn.Module, layer: str | int, sample: Tensor, size: int, hidden: int, structural: bool, dims: int
    ) -> None:
        super().__init__(net, layer, sample)
        layers: list[nn.Module] = []
        features, shape = self.shape.numel(), self.shape
        if structural:
            if len(shape) != 1 + dims:
                raise ValueError(
                    f"use_structural_mlp: with positional_dims {dims} the hidden layer must give (B, C{', side' * dims}), and "
                    f"gives (B, {', '.join(map(str, shape))})"
                )
            layers.append(_quartered(shape[0], dims))
            features = features // shape[0] * max(shape[0] // 4, 1)
        self.projector = nn.Sequential(*layers, nn.Flatten(), mlp(features, size, hidden))

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, size)."""
        projected: Tensor = self.projector(self.hidden(pictures))
        return projected


def _quartered(channels: int, dims: int) -> nn.Sequential:
    """Two convolutions that leave a map a quarter of its channels."""
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
    fewer = max(channels // 4, 1)
    return nn.Sequential(
        conv(channels, fewer, 3, padding=1), norm(fewer), nn.ReLU(), conv(fewer, fewer, 3, padding=1), norm(fewer), nn.ReLU()
    )


@ARCHS.register("byol")
class BYOL(BootstrapNetwork):
    """Trains another network, `subnet`, without labels: `{type: generator, in: [aug1, aug2], out: loss}`, `direct` of `loss`.

    The loss is the sum over both directions of 2 - 2 cos between the prediction and what the target network makes of the other
    view. The target, a moving average, moves once after each update, whatever `mega_batch_factor` is. Batch normalisation
    (which keeps the representation from collapsing) sees one micro-batch at a time: with a `mega_batch_factor` of 4 and a batch
    of 256 its statistics are those of 64 pictures.

    Give the trained network to another run by `path.pretrain`: `resnet50` and `segformer` take the checkpoint as it is.

    Args:
        subnet: the network that is to learn, as it would stand under `networks`.
        image_size: height and width of the views.
        hidden_layer: the layer whose output, flattened, is the representation: its name, or place among the direct children.
        use_structural_mlp: two convolutions bring a hidden layer that gives a map to a quarter of its channels first.
        positional_dims: dimensions of that map: 1 or 2.
        aug_enable: make the views here, on the device, of pictures in [0, 1]: with one input two views of it, with two a view
            of each. Off: the inputs are the views, as `byol_dataset` gives them. (DL-Art-School made views of those views.)
        least_area: of views made here: share of the picture's area that a cut has at least.
        flip: of views made here: probability of mirroring.
        projection_size: length of the vectors that are compared.
        projection_hidden_size: width of projector and predictor.
        moving_average_decay: share of the target that an update leaves.
        report_spread: give `spread`, too, which tells a collapse: 0 where all pictures have the same vector, 1 where vectors
            are spread evenly. `out: [loss, spread]`, and `direct` of it with weight 0 to see it in the log.

    Raises:
        ConfigurationError: the subnet has no such layer.
        ValueError: the hidden layer gives no map of `positional_dims` dimensions.
    """

    def __init__(
        self,
        *,
        subnet: NetworkOptions,
        image_size: PositiveInt,
        hidden_layer: str | int,
        use_structural_mlp: bool = False,
        positional_dims: Literal[1, 2] = 2,
        aug_enable: bool = False,
        least_area: Fraction = 0.08,
        flip: Fraction = 0.5,
        projection_size: PositiveInt = 256,
        projection_hidden_size: PositiveInt = 4096,
        moving_average_decay: Fraction = 0.99,
        report_spread: bool = False,
    ) -> None:
        encoder = ProjectedEncoder(
            create_network(subnet, name="subnet"),
            hidden_layer,
            torch.zeros(1, 3, image_size, image_size),
            projection_size,
            projection_hidden_size,
            use_structural_mlp,
            positional_dims,
        )
        predictor = mlp(projection_size, projection_size, projection_hidden_size)
        super().__init__(encoder, predictor, moving_average_decay)
        self.makes_views = aug_enable
        self.rules = replace(ViewRules(), least_area=least_area, flip=flip)
        self.reports_spread = report_spread

    def forward(self, one: Tensor, two: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compares two views.

        Args:
            one: (B, 3, image_size, image_size), the first views.
            two: the second views; not given: pictures `one`, of which both are made (`aug_enable`).

        Returns:
            The loss, a scalar in float32, 0 to 8; with `report_spread` also that, a scalar.

        Raises:
            ValueError: there is one input, and no views are made of it.
        """
        if two is None and not self.makes_views:
            raise ValueError("byol compares two views: 'in: [aug1, aug2]', or aug_enable for two views of one picture")
        views = [one, one if two is None else two]
        if self.makes_views:
            draws = draw(2, len(one), DRAWS, device=one.device, training=self.training)
            views = [make_views(pictures, each, self.rules)[0] for pictures, each in zip(views, draws, strict=True)]
        loss, found = self.compare([(view,) for view in views])
        return (loss, found) if self.reports_spread else loss

    def features(self, pictures: Tensor) -> Tensor:
        """The representation of (B, 3, image_size, image_size): the online hidden layer, flattened, (B, features)."""
        hidden: Tensor = self.online_encoder.hidden(pictures)
        return hidden.flatten(1)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        subnet = {"which_model": "resnet50", "blocks": [1, 1], "width": 4, "small_pictures": True}
        options = {"subnet": subnet, "image_size": 8, "hidden_layer": "avgpool", "projection_size": 8}
        return {**options, "projection_hidden_size": 16}, (torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8))
