"""BYOL for features of pixels: what two views of a picture have at the same place is compared."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.layers.byol import BootstrapNetwork, Encoder, mlp
from dlas.layers.views import DRAWS, Cuts, ViewRules, draw, make_views
from dlas.registry import ARCHS
from dlas.types import Fraction, NetworkOptions, PositiveInt

_LEAST_AREA = 0.4
"""Cuts of this share of a picture have sides of more than half of the picture's, so that any two of them overlap."""


class PointEncoder(Encoder):
    """A vector for each of some points of a picture: the hidden layer's map there, and a projector behind it."""

    def __init__(self, net: nn.Module, layer: str | int, sample: Tensor, size: int, hidden: int) -> None:
        super().__init__(net, layer, sample)
        if len(self.shape) != 3:
            raise ValueError(f"hidden_layer: must give a map (B, C, H, W), and gives (B, {', '.join(map(str, self.shape))})")
        self.projector = mlp(self.shape[0], size, hidden)

    def forward(self, pictures: Tensor, points: Tensor) -> Tensor:
        """(B, 3, H, W) and points (B, P, 2) as shares of width and height -> (B * P, size)."""
        projected: Tensor = self.projector(at_points(self.hidden(pictures), points).flatten(0, 1))
        return projected


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps (B, C, H, W) at points (B, P, 2), x and y as shares of the sides, between pixels bilinear: (B, P, C)."""
    grid = (2 * points - 1)[:, None].to(maps.dtype)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0].transpose(1, 2)


def shared_points(one: Cuts, two: Cuts, draws: Tensor) -> Tensor:
    """Points of pictures that both views show.

    Args:
        one: where the first views lie.
        two: where the second ones lie; they overlap.
        draws: (B, P, 2), random numbers in [0, 1).

    Returns:
        (B, P, 2), x and y as shares of the picture's sides.
    """
    low = torch.stack((torch.maximum(one.left, two.left), torch.maximum(one.top, two.top)), dim=-1)
    right = torch.minimum(one.left + one.width, two.left + two.width)
    bottom = torch.minimum(one.top + one.height, two.top + two.height)
    return low[:, None] + draws * (torch.stack((right, bottom), dim=-1) - low)[:, None]


@ARCHS.register("pixel_local_byol")
class PixelLocalBYOL(BootstrapNetwork):
    """Trains the map of features of another network, `subnet`, without labels: `{type: generator, in: aug1, out: loss}`.

    Two views are made of each picture, on the device; at points that both show, `byol`'s loss is taken of the features.
    DL-Art-School's network of this name is lost; this one does what the recipe asks in the sense of the sources.

    Args:
        subnet: the network that is to learn, as it would stand under `networks`.
        image_size: height and width of the pictures.
        hidden_layer: the layer that gives the map (B, C, H, W): its name, or place among the direct children.
        points: points of each picture that are compared.
        projection_size: length of the vectors that are compared.
        projection_hidden_size: width of projector and predictor.
        moving_average_decay: share of the target that an update leaves.
        report_spread: give `spread`, too: 0 where all points have the same vector (collapse), 1 where they are spread evenly.

    Raises:
        ConfigurationError: the subnet has no such layer.
        ValueError: the layer gives no map.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv:2006.07733); for places that correspond: Pinheiro et al.,
    "Unsupervised Learning of Dense Visual Representations", NeurIPS 2020 (arXiv:2011.05499), section 3.
    """

    def __init__(
        self,
        *,
        subnet: NetworkOptions,
        image_size: PositiveInt,
        hidden_layer: str | int,
        points: PositiveInt = 32,
        projection_size: PositiveInt = 256,
        projection_hidden_size: PositiveInt = 4096,
        moving_average_decay: Fraction = 0.99,
        report_spread: bool = False,
    ) -> None:
        net = create_network(subnet, name="subnet")
        sample = torch.zeros(1, 3, image_size, image_size)
        encoder = PointEncoder(net, hidden_layer, sample, projection_size, projection_hidden_size)
        super().__init__(encoder, mlp(projection_size, projection_size, projection_hidden_size), moving_average_decay)
        self.points = points
        self.reports_spread = report_spread
        self.rules = replace(ViewRules(), least_area=_LEAST_AREA)

    def forward(self, pictures: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Makes two views of pictures, in evaluation the same ones each time, and compares them.

        Args:
            pictures: (B, 3, image_size, image_size).

        Returns:
            The loss, a scalar in float32, 0 to 8; with `report_spread` also that, a scalar.
        """
        count, numbers = len(pictures), partial(draw, device=pictures.device, training=self.training)
        draws = numbers(2, count, DRAWS)
        (view, cuts), (other, other_cuts) = (make_views(pictures, each, self.rules) for each in draws)
        points = shared_points(cuts, other_cuts, numbers(count, self.points, 2))
        loss, found = self.compare([(view, cuts.to_view(points)), (other, other_cuts.to_view(points))])
        return (loss, found) if self.reports_spread else loss

    def features(self, pictures: Tensor, points: Tensor) -> Tensor:
        """The hidden layer at points (B, P, 2), x and y as shares of the sides: (B, P, C)."""
        return at_points(self.online_encoder.hidden(pictures), points)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        subnet = {"embed_dims": [4], "depths": [1], "num_heads": [1], "reductions": [2], "decoder_dim": 8, "drop_path": 0.0}
        options = {"subnet": {"which_model": "segformer", **subnet}, "image_size": 32, "hidden_layer": "tail", "points": 4}
        return {**options, "projection_size": 8, "projection_hidden_size": 16}, (torch.rand(4, 3, 32, 32),)
