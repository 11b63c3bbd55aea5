"""Clips of all recordings as one corpus: with texts, similar clips, a manifest and a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from dlas.data.corpus.functions import ClipFunction
from dlas.data.corpus.plan import SpeechPlan
from dlas.data.corpus.recording import Classifier, Outcome, Recording, cut_recording
from dlas.data.corpus.report import Report
from dlas.data.corpus.results import Clip, results_of
from dlas.data.corpus.voices import cepstral_statistics, similar_clips, standardised
from dlas.data.images.files import write_whole
from dlas.data.json_lines import line_of
from dlas.data.pool import DIED, map_in_processes
from dlas.data.preparation.folder import refuse_lost_sources
from dlas.data.preparation.records import NOTES
from dlas.data.text.cleaning import clean
from dlas.errors import printable

MANIFEST, REJECTED, REPORT = "manifest.jsonl", "rejected.jsonl", "report.json"

Advance = Callable[[int], None]


@dataclass
class Kept:
    """A clip that is kept so far."""

    clip: Clip
    speaker: str
    part: dict[str, Any]
    source: str
    text: str | None = None
    heard: str | None = None
    similar: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Its length."""
        return round(float(self.part["end"] - self.part["start"]), 4)

    def entry(self) -> dict[str, Any]:
        """Its line of the manifest."""
        texts = {} if self.text is None else {"text": self.text, "heard": self.heard}
        place = {"source": self.source, "start": self.part["start"]}
        return {
            "file": self.clip.name, **texts, "speaker": self.speaker, "duration": self.seconds, "similar": self.similar, **place
        }  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Makes what is missing of a corpus.

    Args:
        recordings: all of them.
        out: folder of the results, claimed.
        plan: how they are cut and judged.
        classifier: tells kinds of sound; picklable.
        recogniser: writes down what is said; None leaves clips without texts.
        cleaner: how texts are normalised; `none` leaves them.
        encoder: vectors of voices; None takes `cepstral_statistics`.
        similar: how many similar clips are listed with each.
        batch_size: clips that functions get at once.
        workers: processes.
        function_workers: processes of users' functions; 0 calls them in this one.
        whole: compare what is there with its checksums.
    """

    recordings: Sequence[Recording]
    out: Path
    plan: SpeechPlan
    classifier: Classifier | None = None
    recogniser: ClipFunction[str] | None = None
    cleaner: Literal["english", "basic", "transliteration", "none"] = "basic"
    encoder: ClipFunction[list[float]] | None = None
    similar: int = 3
    batch_size: int = 16
    workers: int = 0
    function_workers: int = 0
    whole: bool = False

    def cut(self) -> Iterator[Outcome]:
        """Cuts the recordings. What became of each, in their order.

        Raises:
            DataError: recordings that an earlier call cut are no longer there.
        """
        refuse_lost_sources(self.out, (recording.name for recording in self.recordings))
        work = partial(cut_recording, out=self.out, plan=self.plan, whole=self.whole, classifier=self.classifier)
        yield from map_in_processes(work, self.recordings, self.workers, _died)

    def describe(self, outcomes: Sequence[Outcome], advance: Callable[[str, int], Advance]) -> Report:
        """Finds texts and similar clips, and writes the manifest, the list of what was rejected, and the report.

        Args:
            outcomes: of `cut`.
            advance: is told what is done now and with how many clips; what it gives is told how many more are done.
        """
        report = Report()
        kept = []
        for recording, outcome in zip(self.recordings, outcomes, strict=True):
            report.add(outcome, recording.name)
            kept += list(self._kept_of(recording, outcome))
        if self.recogniser is not None:
            kept = self._with_texts(kept, self.recogniser, report, advance)
        self._find_similar(kept, advance)
        for each in kept:
            report.keep(each.speaker, each.seconds)
        write_whole(self.out / MANIFEST, b"".join(line_of(each.entry()) for each in kept))
        write_whole(self.out / REJECTED, b"".join(map(line_of, report.rejected)))
        write_whole(self.out / REPORT, report.json())
        return report

    def _kept_of(self, recording: Recording, outcome: Outcome) -> Iterator[Kept]:
        if outcome.record is None:
            return
        parts = [part for part in outcome.record.details["parts"] if "file" in part]
        for part, file in zip(parts, outcome.record.files, strict=True):
            yield Kept(Clip(self.out / file.path, file.path, file.checksum), recording.speaker, part, recording.name)

    def _with_texts(
        self,
        kept: list[Kept],
        recogniser: ClipFunction[str],
        report: Report,
        advance: Callable[[str, int], Advance],
    ) -> list[Kept]:
        heard = results_of(
            [each.clip for each in kept],
            self.plan.rate,
            recogniser,
            self.out / NOTES / f"texts-{recogniser.identity}.jsonl",
            batch_size=self.batch_size,
            workers=self.function_workers,
            advance=advance("texts", len(kept)),
        )
        with_words = []
        for each, text in zip(kept, heard, strict=True):
            each.heard = text
            each.text = text if self.cleaner == "none" else clean(text, self.cleaner).strip()
            if any(letter.isalnum() for letter in each.text):
                with_words.append(each)
            else:
                report.reject(each.source, each.part | {"rejected": ["no words"]})
        return with_words

    def _find_similar(self, kept: list[Kept], advance: Callable[[str, int], Advance]) -> None:
        if not kept or not self.similar:
            return
        own = self.encoder is None
        vectors = torch.tensor(
            results_of(
                [each.clip for each in kept],
                self.plan.rate,
                self.encoder or cepstral_statistics,
                self.out / NOTES / f"voices-{self.encoder.identity if self.encoder else 'cepstral'}.jsonl",
                batch_size=self.batch_size,
                workers=self.workers if own else self.function_workers,
                advance=advance("voices", len(kept)),
            )
        )
        lists = similar_clips([each.speaker for each in kept], standardised(vectors) if own else vectors, self.similar)
        for each, others in zip(kept, lists, strict=True):
            each.similar = [kept[other].clip.name for other in others]


def _died(recording: Recording) -> Outcome:
    return Outcome(None, "damaged", f"{printable(recording.source)}: {DIED}")
