"""What Tacotron 2 is trained by."""

from __future__ import annotations

import torch
from torch import Tensor

from dlas.context import Context
from dlas.layers.tacotron_error import tacotron_errors
from dlas.losses.base import Loss, State
from dlas.registry import LOSSES
from dlas.types import StateIn


@LOSSES.register("nv_tacotron2_loss")
class Tacotron2Loss(Loss):
    """Squared error of both spectrograms plus the cross entropy of the gate, each the mean over all of its numbers, in float32.

    Logs `mel_loss`, `postnet_loss` and `gate_loss`.

    Args:
        mel_target_key: true log-mel spectrograms, (B, C, F), 0 beyond their ends.
        mel_output_key: what the decoder makes.
        mel_output_postnet_key: the same corrected.
        gate_target_key: 1 from the last frame on, else 0, (B, F).
        gate_output_key: logits of that.

    Source: Shen et al., ICASSP 2018 (arXiv:1712.05884), section 2.2.
    """

    def __init__(
        self,
        *,
        mel_target_key: StateIn,
        mel_output_key: StateIn,
        mel_output_postnet_key: StateIn,
        gate_target_key: StateIn,
        gate_output_key: StateIn,
    ) -> None:
        super().__init__()
        self.keys = (mel_target_key, mel_output_key, mel_output_postnet_key, gate_target_key, gate_output_key)

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        parts = {name: each.mean() for name, each in tacotron_errors(*(state[key] for key in self.keys)).items()}
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}
