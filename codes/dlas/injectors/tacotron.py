"""What Tacotron 2 is validated by."""

from __future__ import annotations

from typing import Any

import torch

from dlas.context import Context
from dlas.injectors.base import Injector, State
from dlas.layers.tacotron_error import tacotron_errors
from dlas.registry import INJECTORS
from dlas.types import StateIn, StateOut


@INJECTORS.register("nv_tacotron2_error")
class Tacotron2ErrorInjector(Injector):
    """The loss `nv_tacotron2_loss` of each sample, for `eval.values`.

    Args:
        mel_target_key: true log-mel spectrograms, (B, C, F), 0 beyond their ends.
        mel_output_key: what the decoder makes.
        mel_output_postnet_key: the same corrected.
        gate_target_key: 1 from the last frame on, else 0, (B, F).
        gate_output_key: logits of that.
        out: (B,), float32.
    """

    def __init__(
        self,
        *,
        mel_target_key: StateIn,
        mel_output_key: StateIn,
        mel_output_postnet_key: StateIn,
        gate_target_key: StateIn,
        gate_output_key: StateIn,
        out: StateOut,
    ) -> None:
        self.keys = (mel_target_key, mel_output_key, mel_output_postnet_key, gate_target_key, gate_output_key)
        self.out = out

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: torch.stack(list(tacotron_errors(*(state[key] for key in self.keys)).values())).sum(0)}
