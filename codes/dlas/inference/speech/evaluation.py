"""Speech measured: what is understood of it, whose voice it is, how good it sounds, how it is distributed."""

from __future__ import annotations

import csv
import io
import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dlas.data.audio.manifests import Utterance
from dlas.data.corpus.functions import ClipFunction
from dlas.data.corpus.results import Clip, results_of
from dlas.data.images.files import write_whole
from dlas.data.text.cleaning import Cleaner, clean
from dlas.errors import ConfigurationError, DataError, printable
from dlas.metrics.accumulators import Moments
from dlas.metrics.error_rate import Errors, character_errors, word_errors
from dlas.metrics.frechet import frechet_distance

Result = TypeVar("Result")

Advance = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class SpeechEvaluation:
    """Measures clips.

    Args:
        clips: what is measured, with the texts that they should say.
        reference: true speech; voices and distributions are compared with it.
        out: folder for the figures.
        rate: at which functions get sound, in Hz.
        recogniser: for error rates.
        cleaner: how texts are normalised before they are compared; None: only case and punctuation are left out.
        encoder: for the similarity of voices.
        judge: gives each clip a figure, such as an opinion score.
        features: for the Fréchet distance.
        batch_size: clips that functions get at once.
        workers: processes of functions.
    """

    clips: Sequence[Utterance]
    reference: Sequence[Utterance]
    out: Path
    rate: int = 22050
    recogniser: ClipFunction[str] | None = None
    cleaner: Cleaner | None = None
    encoder: ClipFunction[list[float]] | None = None
    judge: ClipFunction[float] | None = None
    features: ClipFunction[list[float]] | None = None
    batch_size: int = 16
    workers: int = 0

    def __post_init__(self) -> None:
        if not any((self.recogniser, self.encoder, self.judge, self.features)):
            raise ConfigurationError("nothing to measure: give --recogniser, --encoder, --judge or --features")
        if (self.encoder or self.features) and not self.reference:
            raise ConfigurationError("--encoder and --features compare with true speech; name its list with --reference")

    def run(self, advance: Advance) -> dict[str, float]:
        """Writes `figures.json` and `clips.csv`, and gives the figures.

        Args:
            advance: is told what is done now and with how many clips; what it gives is told how many more are done.

        Raises:
            DataError: a clip is missing, a speaker has no true speech, or there are too few clips for a distance.
        """
        table = _Table([str(each.path) for each in self.clips])
        figures: dict[str, float] = {"clips": len(self.clips)}
        if self.recogniser is not None:
            figures |= self._errors(self.recogniser, table, advance)
        if self.encoder is not None:
            figures["speaker_similarity"] = self._similarity(self.encoder, table, advance)
        if self.judge is not None:
            scores = self._results("score", self.clips, self.judge, advance)
            table.columns["score"] = list(scores)
            figures["score"] = math.fsum(scores) / len(scores)
        if self.features is not None:
            figures["frechet_distance"] = self._distance(self.features, advance)
        write_whole(self.out / "clips.csv", table.text())
        write_whole(self.out / "figures.json", json.dumps(figures, indent=1).encode() + b"\n")
        return figures

    def _errors(self, recogniser: ClipFunction[str], table: _Table, advance: Advance) -> dict[str, float]:
        heard = self._results("texts", self.clips, recogniser, advance)
        in_words, in_characters, rates = Errors(), Errors(), list[str | float]()
        for clip, text in zip(self.clips, heard, strict=True):
            right, found = (clean(given, self.cleaner) if self.cleaner else given for given in (clip.text, text))
            one = word_errors(right, found)
            in_words, in_characters = in_words + one, in_characters + character_errors(right, found)
            rates.append(one.rate)
        if not in_words.length:
            raise DataError("the clips' texts have no words, so there is no error rate; give the list that they were made from")
        table.columns |= {"text": [clip.text for clip in self.clips], "heard": list(heard), "word_error_rate": rates}
        return {"word_error_rate": in_words.rate, "character_error_rate": in_characters.rate, "words": in_words.length}

    def _similarity(self, encoder: ClipFunction[list[float]], table: _Table, advance: Advance) -> float:
        """Mean cosine between a clip's vector and the mean of those of its speaker's true clips."""
        speakers = {clip.speaker for clip in self.clips}
        reference = [clip for clip in self.reference if clip.speaker in speakers]
        if missing := speakers - {clip.speaker for clip in reference}:
            known = ", ".join(printable(name) for name in sorted({clip.speaker for clip in self.reference})[:5])
            raise DataError(
                f"--reference has no clips of {', '.join(map(printable, sorted(missing)[:5]))}; its speakers are {known}"
            )
        true = _units(self._results("true voices", reference, encoder, advance))
        voices = {
            name: torch.nn.functional.normalize(true[[clip.speaker == name for clip in reference]].mean(0), dim=0)
            for name in speakers
        }
        made = _units(self._results("voices", self.clips, encoder, advance))
        cosines = [float(vector @ voices[clip.speaker]) for vector, clip in zip(made, self.clips, strict=True)]
        table.columns["speaker_similarity"] = list(cosines)
        return math.fsum(cosines) / len(cosines)

    def _distance(self, features: ClipFunction[list[float]], advance: Advance) -> float:
        if min(len(self.clips), len(self.reference)) < 2:
            raise DataError(
                "a Fréchet distance is one of distributions: two clips of each kind are the least, and many are better"
            )
        moments: list[Tensor] = []
        for what, clips in (("features", self.clips), ("true features", self.reference)):
            both = Moments(None, torch.device("cpu"))
            both.update(torch.tensor(self._results(what, clips, features, advance)))
            moments += both.compute()
        return float(frechet_distance(*moments))

    def _results(self, what: str, clips: Sequence[Utterance], function: ClipFunction[Result], advance: Advance) -> list[Result]:
        kept_in = self.out / ".evaluate" / f"{function.kind.name}-{self.rate}-{function.identity}.jsonl"
        named = [Clip(clip.path, str(clip.path), _stamp(clip.path)) for clip in clips]
        return results_of(
            named,
            self.rate,
            function,
            kept_in,
            batch_size=self.batch_size,
            workers=self.workers,
            advance=advance(what, len(clips)),
        )


@dataclass
class _Table:
    """Figures of each clip."""

    names: list[str]
    columns: dict[str, list[str | float]] = field(default_factory=dict)

    def text(self) -> bytes:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *self.columns])
        writer.writerows(zip(self.names, *self.columns.values(), strict=True))
        return file.getvalue().encode()


def _units(vectors: list[list[float]]) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(vectors), dim=1)


def _stamp(path: Path) -> int:
    """Changes when a file does; 0 for a missing one, which its reader then names."""
    return zlib.crc32(path.read_bytes()) if path.is_file() else 0
