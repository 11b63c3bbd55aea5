"""What each bin of a spectrogram is divided by (`mel_norm_file`), of your own clips: their mean log power, in absolute value.

    python recipes/tortoise/mel_norms.py datasets/mine models/mine/mel_norms.pth

The published networks need tortoise-tts's own file; networks that are trained from the start are better off with this one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from dlas.data.audio.files import list_sounds, read_sound
from dlas.errors import DataError
from dlas.layers.mel import MelSpectrogram

RATE = 22050
BINS = 80


def mel_norms(files: list[Path]) -> Tensor:
    """The mean absolute log power of each bin over all frames, (80,).

    Raises:
        DataError: a file cannot be read.
    """
    spectrogram = MelSpectrogram(power=2, scale="htk", n_mel_channels=BINS)
    total, frames = torch.zeros(BINS, dtype=torch.float64), 0
    for file in files:
        mel = spectrogram(read_sound(file, RATE)[None])[0]
        total += mel.abs().double().sum(1)
        frames += mel.shape[1]
    return (total / frames).float()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+", help="folders; subfolders are searched")
    parser.add_argument("out", type=Path, help="the file that is written")
    parser.add_argument("--every", type=int, default=10, help="look at every so many-th clip (10)")
    given = parser.parse_args(arguments)
    try:
        files = [file for folder in given.clips for file in list_sounds(folder)][:: given.every]
        norms = mel_norms(files)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    given.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(norms, given.out)
    print(f"{given.out}: of {len(files)} clips, from {norms.min():.2f} to {norms.max():.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
