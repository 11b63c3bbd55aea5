"""`dlas data speech`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dlas.cli.clip_functions import add_function, function_of, stages_shown
from dlas.cli.numbers import count, not_negative, positive
from dlas.errors import ConfigurationError

if TYPE_CHECKING:
    from dlas.data.corpus.plan import SpeechPlan

SUMMARY = "make a corpus of recordings: cut at silences, filter, transcribe, list similar clips"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="recordings; subfolders are searched")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for clips, manifest and report")
    clips = parser.add_argument_group("clips")
    clips.add_argument("--rate", type=positive, default=22050, metavar="HZ", help="sampling rate of the clips (22050)")
    clips.add_argument("--format", choices=("flac", "wav"), default="flac", help="of the clips, 16 bits (flac)")
    clips.add_argument("--silence-below", type=float, default=-40.0, metavar="DB", help="silence, under full scale (-40)")
    clips.add_argument("--min-silence", type=not_negative, default=0.6, metavar="S", help="seconds of it that part clips (0.6)")
    clips.add_argument("--keep-silence", type=not_negative, default=0.05, metavar="S", help="seconds kept at both ends (0.05)")
    clips.add_argument("--min-seconds", type=not_negative, default=4.0, metavar="S", help="of a clip (4)")
    clips.add_argument("--max-seconds", type=not_negative, default=20.0, metavar="S", help="of a clip (20)")
    quality = parser.add_argument_group("which clips are kept")
    quality.add_argument("--min-loudness", type=float, default=-35.0, metavar="DB", help="root mean square (-35)")
    quality.add_argument(
        "--max-clipped", type=not_negative, default=0.001, metavar="SHARE", help="of samples at the peak (0.001)"
    )
    quality.add_argument(
        "--min-bandwidth",
        type=not_negative,
        metavar="HZ",
        help="up to where there is sound; by default 0.7 times half the rate; 0: no matter",
    )
    quality.add_argument(
        "--min-snr",
        type=float,
        default=20.0,
        metavar="DB",
        help="speech over what is between words (20); --min-snr=-inf: no matter",
    )
    quality.add_argument(
        "--classifier", metavar="PATH", help="training run, or file, of a mini_audio_encoder_classifier of waveforms"
    )
    quality.add_argument("--keep-label", type=count, default=0, metavar="N", help="kind of sound that is kept (0)")
    described = parser.add_argument_group("what is said of clips")
    described.add_argument(
        "--speaker", choices=("folder", "file"), default="folder", help="whose voice: one a folder, or one a recording (folder)"
    )
    add_function(described, "recogniser", "transcribe(clips, rate) -> list of texts; without it clips have none")
    described.add_argument(
        "--cleaner",
        choices=("english", "basic", "transliteration", "none"),
        default="basic",
        help="how texts are normalised (basic: lower case, single blanks)",
    )
    add_function(described, "encoder", "embed(clips, rate) -> vectors of voices; cepstral statistics by default")
    described.add_argument("--similar", type=count, default=3, metavar="N", help="clips of the same voice listed with each (3)")
    how = parser.add_argument_group("how")
    how.add_argument("--batch-size", type=positive, default=16, metavar="N", help="clips that functions get at once (16)")
    how.add_argument("--workers", type=count, metavar="N", help="processes; by default one for each CPU, 0: in this one")
    how.add_argument(
        "--function-workers", type=count, default=0, metavar="N", help="processes for functions of yours; 0: in this one (0)"
    )
    how.add_argument("--verify", action="store_true", help="compare clips that are there with their checksums")
    how.add_argument("--overwrite", action="store_true", help="make anew what an earlier call made in OUT")
    how.add_argument("--strict", action="store_true", help="exit status 1 if a recording is damaged")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report. Returns 1 if no clip is kept, with `--strict` if a recording is damaged."""
    try:
        return _build(arguments)
    except KeyboardInterrupt:
        print("stopped; the same call goes on where it was", file=sys.stderr)
        return 130


def _build(arguments: argparse.Namespace) -> int:
    from dlas.data.corpus.building import Corpus
    from dlas.data.corpus.functions import ENCODER, RECOGNISER
    from dlas.data.corpus.recording import recordings_of
    from dlas.data.preparation import claim
    from dlas.inference.speech.kinds_of_sound import KindsOfSound
    from dlas.observe.console import progress_bar
    from dlas.observe.lock import locked

    recogniser = function_of(arguments, RECOGNISER)
    encoder = function_of(arguments, ENCODER)
    if arguments.classifier is None and arguments.keep_label:
        raise ConfigurationError("--keep-label is about a classifier; name it with --classifier")
    classifier = KindsOfSound.of(arguments.classifier) if arguments.classifier is not None else None
    plan = _plan(arguments, classifier.checksum if classifier is not None else 0)
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    out: Path = arguments.output
    recordings = recordings_of(arguments.folders, out, arguments.speaker)
    corpus = Corpus(
        recordings,
        out,
        plan,
        classifier,
        recogniser,
        arguments.cleaner,
        encoder,
        arguments.similar,
        arguments.batch_size,
        workers,
        arguments.function_workers,
        arguments.verify,
    )
    start = time.monotonic()
    with locked(out / ".prepare" / "lock", f"making a corpus in {out}", "give another --output"):
        claim(out, plan, arguments.folders, overwrite=arguments.overwrite)
        outcomes = []
        with progress_bar(len(recordings), 0) as bar:
            for outcome in corpus.cut():
                outcomes.append(outcome)
                bar.update()
        with stages_shown() as begin:
            report = corpus.describe(outcomes, begin)
    print(report.text(time.monotonic() - start, workers))
    return 1 if not report.kept.clips or (arguments.strict and report.faults) else 0


def _plan(arguments: argparse.Namespace, classifier_weights: int) -> SpeechPlan:
    from dlas.data.corpus.plan import SpeechPlan

    bandwidth = arguments.min_bandwidth
    return SpeechPlan(
        rate=arguments.rate,
        format=arguments.format,
        silence_below=arguments.silence_below,
        min_silence=arguments.min_silence,
        keep_silence=arguments.keep_silence,
        min_seconds=arguments.min_seconds,
        max_seconds=arguments.max_seconds,
        min_loudness=arguments.min_loudness,
        max_clipped=arguments.max_clipped,
        min_bandwidth=0.35 * arguments.rate if bandwidth is None else bandwidth,
        min_snr=arguments.min_snr,
        classifier=arguments.classifier or "",
        classifier_weights=classifier_weights,
        keep_label=arguments.keep_label,
    )
