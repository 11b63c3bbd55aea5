"""A U-Net that is told of a picture's codes: the decoder of a discrete autoencoder as a diffusion.

Codes become vectors of an own table and are enlarged to the picture's size by repetition. They are shown beside the noisy
picture, as small pictures are by Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021 (arXiv:2104.07636),
and mel codes by TorToiSe's decoder (Betker 2023, arXiv:2305.07243, section 3.3). The rest is `dlas.layers.unet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.unet import UNet, UNetOptions
from dlas.layers.vector_quantizer import as_picture
from dlas.registry import ARCHS
from dlas.types import Fraction, PositiveInt


@ARCHS.register("code_unet")
class CodeUNet(UNet):
    """U-Net that denoises a picture whose codes it knows.

    Train it with the injector `diffusion`: `conditions: {codes: codes}`; to drop them for guidance, `unconditional: {codes: K}`
    with K the number of codes.

    Args:
        num_tokens: codes.
        code_channels: channels of a code's vector.
        in_channels: channels of a picture.
        model_channels: width: channels of the first level for a `channel_mult` of 1.
        out_channels: channels of the output: twice a picture's where the variance is learned.
        num_res_blocks: residual blocks a level on the way down; on the way up there is one more.
        attention_resolutions: by which factors pictures are smaller at the levels that have attention.
        dropout: probability with which features are dropped within residual blocks.
        channel_mult: channels of each level, in `model_channels`; between levels the picture is halved.
        num_heads: heads of attention.
        use_scale_shift_norm: times scale and shift normalised features; otherwise they are added before.
        norm_groups: groups of normalisation: 32 (`guided`), or fewer for up to 64 channels (`dlas`).
    """

    def __init__(
        self,
        *,
        num_tokens: PositiveInt = 512,
        code_channels: PositiveInt = 64,
        in_channels: PositiveInt = 3,
        model_channels: PositiveInt = 128,
        out_channels: PositiveInt = 3,
        num_res_blocks: PositiveInt = 2,
        attention_resolutions: Sequence[int] = (8, 16),
        dropout: Fraction = 0.0,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_heads: PositiveInt = 4,
        use_scale_shift_norm: bool = True,
        norm_groups: Literal["guided", "dlas"] = "guided",
    ) -> None:
        options = UNetOptions(
            in_channels=in_channels + code_channels,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            channel_mult=channel_mult,
            num_heads=num_heads,
            use_scale_shift_norm=use_scale_shift_norm,
            norm_groups=norm_groups,
        )
        super().__init__(options, out_channels)
        self.code_embedding = nn.Embedding(num_tokens + 1, code_channels)

    def forward(self, x: Tensor, timesteps: Tensor, codes: Tensor) -> Tensor:
        """Predicts.

        Args:
            x: noisy pictures, (B, in_channels, H, W); reflected for the network where H or W cannot be halved at each level.
            timesteps: (B,), whole or not.
            codes: (B, h, w) integers, or (B, N) of a square row by row; `num_tokens` stands for none.

        Returns:
            (B, out_channels, H, W), in the type of the weights under autocast, too.

        Raises:
            ValueError: N is no square.
        """
        vectors = F.interpolate(self.code_embedding(as_picture(codes)).movedim(-1, 1).to(x.dtype), x.shape[-2:], mode="nearest")
        return self.predict_any_size(torch.cat((x, vectors), dim=1), self.embed(timesteps))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        options = {"num_tokens": 5, "code_channels": 3, "model_channels": 8, "num_res_blocks": 1, "channel_mult": [1, 2]}
        more = {"norm_groups": "dlas", "attention_resolutions": [2], "num_heads": 2}
        return options | more, (
            torch.randn(2, 3, 8, 8),
            torch.tensor([3, 700]),
            torch.tensor([[[0, 5], [2, 1]], [[4, 0], [1, 1]]]),
        )
