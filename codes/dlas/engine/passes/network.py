"""A network as evaluation calls it: in tiles, and as a self-ensemble."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dlas.engine.passes.ensemble import self_ensemble
from dlas.engine.passes.tiling import Tiler, tile_grid
from dlas.errors import TrainingError


class PicturePasses(nn.Module):
    """Stands in for a network that makes one picture of one picture; it is called under the autocast of its caller.

    Args:
        network: the network.
        device: where it computes.
        tile: side of the tiles in pixels of the network's input; `auto` by free memory; 0 takes pictures whole.
        ensemble: take the mean over eight ways of turning and mirroring each picture.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, *, tile: int | Literal["auto"] = 0, ensemble: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.device = device
        self.tile = tile
        self.ensemble = ensemble
        self._tiler: Tiler | None = None  # made with the first picture of a pass

    def begin(self) -> None:
        """Forgets how far the network looks: other weights may look further. Comes before each pass through a data set."""
        self._tiler = None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, channels, height * scale, width * scale), float32.

        Raises:
            TrainingError: the network makes no picture of a picture, or memory does not suffice.
        """
        if self._tiler is None:
            self._tiler = self._new_tiler(x)
        return self_ensemble(self._tiler, x) if self.ensemble else self._tiler(x)

    def _new_tiler(self, x: Tensor) -> Tiler:
        grid = tile_grid(self.network)
        side = max(2 * grid, 16)
        corner = x[:1, :, :side, :side]
        output = self._pass(corner)
        ratios = {after / before for after, before in zip(output.shape[-2:], corner.shape[-2:], strict=True)}
        if output.dim() != 4 or len(ratios) != 1:
            raise TrainingError(
                "eval.tile and eval.self_ensemble need a network that enlarges a picture by one factor; of "
                f"{tuple(corner.shape)} {type(self.network).__name__} makes {tuple(output.shape)}. Set "
                "'tile: 0' and 'self_ensemble: false' under 'eval'"
            )
        return Tiler(
            self._pass,
            self._exact_pass,
            self.network,
            channels=x.shape[1],
            scale=ratios.pop(),
            device=self.device,
            tile=self.tile,
            grid=grid,
            result_device=self.device,
        )

    def _pass(self, x: Tensor) -> Tensor:
        output = self.network(x)
        picture: Tensor = output[0] if isinstance(output, tuple) else output
        return picture

    def _exact_pass(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self._pass(x.float())
