"""Other clips of the same voice: what a network is told a voice by, which must not be the clip that it is to say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dlas.data.audio.batches import pad_to
from dlas.data.audio.files import SUFFIXES, read_part
from dlas.data.audio.manifests import Utterance, Voice
from dlas.data.base import BadSample
from dlas.data.shards.folder import siblings
from dlas.errors import DataError, printable

Alone: TypeAlias = Literal["error", "skip", "self"]
"""What becomes of the only clip of a speaker: the run ends, it is left out, or it is its own companion."""

_EXAMPLES = 3


def by_voice(clips: Sequence[Utterance], alone: Alone) -> tuple[list[Utterance], dict[Voice, list[Path]]]:
    """The clips that have companions, and the files of each voice.

    Raises:
        DataError: some have none, and `alone` is `error`; or nothing is left.
    """
    found: dict[Voice, dict[Path, None]] = {}
    for clip in clips:
        found.setdefault(clip.voice, {})[clip.path] = None
    voices = {voice: list(files) for voice, files in found.items()}
    single = [clip for clip in clips if len(voices[clip.voice]) == 1]
    if single and alone == "error":
        shown = ", ".join(printable(clip.path) for clip in single[:_EXAMPLES])
        raise DataError(
            f"{len(single)} of {len(clips)} clips are the only one of their speaker: {shown}"
            f"{', ...' if len(single) > _EXAMPLES else ''}. Conditioning takes another clip of the same voice: add some, or "
            "say `only_clip: skip` (leave them out) or `self` (the clip itself, which the network then learns to copy)"
        )
    kept = [clip for clip in clips if alone != "skip" or len(voices[clip.voice]) > 1]
    if not kept:
        raise DataError("no clip has another one of its speaker; conditioning needs two clips of a voice")
    return kept, voices


@lru_cache(maxsize=4096)
def in_folder(folder: Path) -> list[Path]:
    """Sound files of a folder, by name: where the list does not tell speakers, a folder is one."""
    packed = siblings(folder)
    return sorted(path for path in (folder.iterdir() if packed is None else packed) if path.suffix.lower() in SUFFIXES)


@dataclass(frozen=True)
class Companions:
    """Draws parts of other clips.

    Args:
        count: how many for each clip.
        length: samples of each; shorter clips are filled up with zeros.
        rate: in Hz.
        alone: what is done about a clip without others.
    """

    count: int
    length: int
    rate: int
    alone: Alone

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is drawn for a clip: (1, length), or of several (count, 1, length)."""
        return (1, self.length) if self.count == 1 else (self.count, 1, self.length)

    def beside(self, path: Path, of_voice: Sequence[Path], rng: np.random.Generator) -> tuple[Tensor, bool]:
        """Parts of other clips, drawn without putting them back as long as there are enough.

        Args:
            path: the clip.
            of_voice: clips of its voice, with or without itself.
            rng: draws.

        Returns:
            The parts, of `shape`, and whether they are of the clip itself.

        Raises:
            BadSample: there are no others, or a file is unusable.
        """
        order = (of_voice[each] for each in rng.permutation(len(of_voice)))
        files = list(itertools.islice((each for each in order if each != path), self.count))
        alone = not files
        if alone and self.alone != "self":
            raise BadSample(
                path, "is the only clip of its speaker, so no other can tell the voice; add some, or say `only_clip: self`"
            )
        chosen = itertools.islice(itertools.cycle(files or [path]), self.count)
        parts = [pad_to(read_part(each, self.rate, self.length, rng.random())[None], [1, self.length]) for each in chosen]
        return torch.stack(parts).reshape(self.shape), alone
