"""What Tacotron 2 is trained by."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dlas.context import Context
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

    Source: Shen et al., ICASSP 2018 (arXiv:1712.05884), section 2.2; the gate: section 2.2, "stop token".
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
        self.mel_target = mel_target_key
        self.mel_output = mel_output_key
        self.postnet_output = mel_output_postnet_key
        self.gate_target = gate_target_key
        self.gate_output = gate_output_key

    def forward(self, state: State, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        target = state[self.mel_target].float()
        parts = {
            "mel_loss": F.mse_loss(self._made(state, self.mel_output, target), target),
            "postnet_loss": F.mse_loss(self._made(state, self.postnet_output, target), target),
            "gate_loss": F.binary_cross_entropy_with_logits(
                state[self.gate_output].float(), state[self.gate_target].float().view_as(state[self.gate_output])
            ),
        }
        loss = parts["mel_loss"] + parts["postnet_loss"] + parts["gate_loss"]
        return loss, {name: part.detach() for name, part in parts.items()}

    def _made(self, state: State, key: str, target: Tensor) -> Tensor:
        made = state[key].float()
        if made.shape != target.shape:
            raise ValueError(
                f"nv_tacotron2_loss: '{key}' {tuple(made.shape)} and the true spectrogram '{self.mel_target}' "
                f"{tuple(target.shape)} must have the same shape; check n_mel_channels"
            )
        return made
