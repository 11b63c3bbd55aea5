"""A judge for `dlas evaluate speech`: DNSMOS P.835, how listeners would rate a clip from 1 to 5, by the package speechmos.

    pip install --no-deps speechmos && pip install librosa onnxruntime requests

The weights lie in the package.
"""

from __future__ import annotations

import numpy as np
import torch
from speechmos import dnsmos

from dlas.layers.mel import resample

RATE = 16000  # Hz; what the network hears


def score(clips: list[np.ndarray], rate: int, rating: str = "ovrl_mos") -> list[float]:
    """The rating of each clip: `ovrl_mos` (overall), `sig_mos` (speech), `bak_mos` (background) or `p808_mos`."""
    sounds = (resample(torch.from_numpy(clip), rate, RATE).clamp(-1, 1).numpy() for clip in clips)
    return [float(dnsmos.run(sound, RATE)[rating]) for sound in sounds]
