"""Plug-in: the text encoder of CLIP or OpenCLIP from a folder in the format of the package transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlas.errors import MissingPackageError
from dlas.registry import ARCHS
from dlas.types import PositiveInt


@ARCHS.register("clip_text")
class ClipText(nn.Module):
    """Captions to the vectors of their tokens.

    Needs `pip install transformers`. The encoder of Stable Diffusion 2 lies in the folders `text_encoder` and `tokenizer` of
    its release: OpenCLIP ViT-H without its last block.

    Args:
        folder: with `text_encoder` and `tokenizer` below.
        length: tokens of a caption.

    Source: Radford et al. 2021 (arXiv:2103.00020).
    """

    def __init__(self, *, folder: str, length: PositiveInt = 77) -> None:
        super().__init__()
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
        except ImportError as error:
            raise MissingPackageError("transformers", "the network clip_text") from error
        self.tokenizer = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
        self.encoder = CLIPTextModel.from_pretrained(f"{folder}/text_encoder")
        self.length = length

    def forward(self, captions: list[str]) -> Tensor:
        """B texts -> (B, length, width)."""
        tokens = self.tokenizer(captions, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt")
        device = next(self.encoder.parameters()).device
        vectors: Tensor = self.encoder(tokens.input_ids.to(device, torch.int64)).last_hidden_state
        return vectors
