"""What happens to codes of speech between TorToiSe's networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SILENCE = 83
"""The code of silence in TorToiSe's codebook."""

ENDING = (45, 45, 248)
"""The codes that its training clips end with."""

CALM = 9
"""So many codes of silence in a row end an utterance."""

FRAMES_A_CODE = 4
CODE_RATE = 22050
"""Sampling rate of the sound that codes stand for, in Hz; a code is 1024 samples."""

SOUND_RATE = 24000
"""Of the sound that is made, in Hz."""


def with_silent_end(codes: Tensor, stop: int, silence: int = SILENCE, ending: Sequence[int] = ENDING) -> Tensor:
    """Makes what follows the end silence, as the networks behind have seen it in training.

    Args:
        codes: (N, L), int64.
        stop: the token that ends an utterance.
        silence: the code of silence.
        ending: the last codes of a row.

    Returns:
        (N, L): from the first stop token on `silence`, and `ending` at the end. Rows without a stop token are as they were.
    """
    stopped = (codes == stop).cumsum(-1) > 0
    quiet = codes.masked_fill(stopped, silence)
    quiet[:, -len(ending) :] = torch.tensor(ending, device=codes.device)
    return torch.where(stopped.any(-1, keepdim=True), quiet, codes)


def spoken_length(codes: Tensor, silence: int = SILENCE, calm: int = CALM) -> int:
    """How many of the codes (L,) are heard: up to where `calm` codes of silence in a row have been seen, or all."""
    run = 0
    for place, code in enumerate(codes.tolist()):
        run = run + 1 if code == silence else 0
        if run == calm:
            return place
    return len(codes)


def frames_of(codes: int) -> int:
    """Spectrogram frames at `SOUND_RATE` that so many codes become."""
    return codes * FRAMES_A_CODE * SOUND_RATE // CODE_RATE
