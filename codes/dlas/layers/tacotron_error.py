"""How far Tacotron 2 is from a true spectrogram, for each sample.

Shen et al., ICASSP 2018 (arXiv:1712.05884), section 2.2: squared errors before and after the postnet, and the cross entropy of
the token that stops.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def tacotron_errors(mel: Tensor, made: Tensor, corrected: Tensor, gate: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """Errors by name, each the mean over all numbers of a sample, (B,), float32.

    Args:
        mel: true log-mel spectrograms, (B, C, F), 0 beyond their ends.
        made: what the decoder makes.
        corrected: the same after the postnet.
        gate: 1 from the last frame on, else 0, (B, F).
        logits: of that.

    Raises:
        ValueError: shapes differ.
    """
    for name, each, like in (("mel_output", made, mel), ("mel_output_postnet", corrected, mel), ("gate_output", logits, gate)):
        if each.shape != like.shape:
            raise ValueError(
                f"Tacotron 2: {name} {tuple(each.shape)} and its target {tuple(like.shape)} must have the same shape; check "
                "n_mel_channels"
            )
    target = mel.float()
    return {
        "mel_loss": (made.float() - target).square().mean((1, 2)),
        "postnet_loss": (corrected.float() - target).square().mean((1, 2)),
        "gate_loss": F.binary_cross_entropy_with_logits(logits.float(), gate.float(), reduction="none").mean(1),
    }
