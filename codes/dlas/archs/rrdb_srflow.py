"""SRFlow's encoder by itself: as a network to train before the flow, and as a frozen extractor of features.

Lugmayr et al., "SRFlow: Learning the Super-Resolution Space with Normalizing Flow", ECCV 2020 (arXiv:2006.14200), section 3.3;
Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", 2018 (arXiv:1809.00219), for the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.archs.rrdb import RRDBNet, RRDBNetBypass
from dlas.archs.srflow import ConditionEncoder
from dlas.layers.classifiers.files import load_exactly
from dlas.layers.rrdb import present_name
from dlas.registry import ARCHS
from dlas.types import NonNegativeInt, PositiveInt


@ARCHS.register("rrdb_srflow")
class RRDBSRFlow(ConditionEncoder):
    """The encoder of SRFlow, which gives a picture too: trained for fidelity first, its weights are the flow's `pretrain_rrdb`.

    Args:
        in_nc: channels of low-resolution pictures.
        out_nc: channels of high-resolution ones.
        nf: width.
        nb: residual-in-residual blocks.
        gc: channels that each convolution of a dense block adds.
        scale: enlargement, as of the flow.
        initial_stride: stride of the first convolution, 7x7 where this is above 1. The picture is scale times initial_stride
            as large as the features.
    """

    def __init__(
        self,
        *,
        in_nc: PositiveInt = 3,
        out_nc: PositiveInt = 3,
        nf: PositiveInt = 64,
        nb: PositiveInt = 23,
        gc: PositiveInt = 32,
        scale: Literal[2, 4, 8] = 4,
        initial_stride: Literal[1, 2, 4] = 1,
    ) -> None:
        doublings = (scale * initial_stride).bit_length() - 1
        super().__init__(in_nc, out_nc, nf, nb, gc, doublings, initial_stride, ())
        self.requires_grad_(True)  # also what makes the picture

    def forward(self, low_res: Tensor) -> Tensor:
        """(B, in_nc, h, w) in [0, 1] -> (B, out_nc, scale h, scale w), not clamped."""
        return self.picture(low_res)

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the layers of ESRGAN's second release the names that RRDBNet has now."""
        return {present_name(key): value for key, value in state_dict.items()}

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"nf": 8, "nb": 2, "gc": 4}, (torch.rand(2, 3, 8, 12),)


@ARCHS.register("rrdb_latent_wrapper")
class RRDBLatentWrapper(nn.Module):
    """The features of some blocks of an RRDBNet, which stays as it is unless it is told otherwise.

    Args:
        in_nc: channels of low-resolution pictures.
        out_nc: channels of high-resolution ones.
        nf: width.
        nb: residual-in-residual blocks.
        gc: channels that each convolution of a dense block adds.
        scale: enlargement of the network that the weights are of.
        with_bypass: the network is RRDBNetBypass.
        blocks_for_latent: blocks, counted from 0, whose results are given; none: what stands behind the long skip.
        pretrain_path: file of the network's weights, in the form that DL-Art-School trains (`long_skip: trunk`).
        frozen: the features have no gradient for the weights.

    Raises:
        ValueError: there is no such block.
        CheckpointError: `pretrain_path` cannot be read or is of another network.
    """

    def __init__(
        self,
        *,
        in_nc: PositiveInt = 3,
        out_nc: PositiveInt = 3,
        nf: PositiveInt = 64,
        nb: PositiveInt = 23,
        gc: PositiveInt = 32,
        scale: Literal[1, 2, 4, 8] = 4,
        with_bypass: bool = False,
        blocks_for_latent: list[NonNegativeInt] | None = None,
        pretrain_path: str | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = list(blocks_for_latent or [])
        if any(block >= nb for block in self.blocks):
            raise ValueError(f"blocks_for_latent {self.blocks}: with nb: {nb} the blocks are 0 .. {nb - 1}")
        options: dict[str, Any] = {"in_nc": in_nc, "out_nc": out_nc, "nf": nf, "nb": nb, "gc": gc, "scale": scale}
        self.RRDB = RRDBNetBypass(**options) if with_bypass else RRDBNet(**options, long_skip="trunk", pixel_unshuffle=False)
        if pretrain_path is not None:
            load_exactly(self.RRDB, Path(pretrain_path), "the network whose features are taken")
        self.requires_grad_(False)
        if not frozen:  # what makes the picture has no part in the features
            behind = [] if self.blocks else [self.RRDB.conv_body]
            for each in (self.RRDB.conv_first, self.RRDB.body, *behind):
                each.requires_grad_(True)

    def forward(self, low_res: Tensor) -> Tensor:
        """(B, in_nc, h, w) in [0, 1] -> (B, nf times the number of blocks or nf, h, w)."""
        features = self.RRDB.conv_first(low_res)
        results = []
        for block in self.RRDB.body:
            features = block(features)
            results.append(features)
        if not self.blocks:
            return features + self.RRDB.conv_body(features)
        return torch.cat([results[block] for block in self.blocks], dim=1)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"nf": 8, "nb": 2, "gc": 4, "blocks_for_latent": [0, 1], "frozen": False}, (torch.rand(2, 3, 8, 12),)
