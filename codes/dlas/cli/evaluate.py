"""`dlas evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dlas.cli.clip_functions import add_function, function_of, stages_shown
from dlas.cli.numbers import count, positive

_LAYOUTS = ("lj", "libritts", "vctk", "tsv", "jsonl", "mozilla_cv", "voxpopuli")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    speech = commands.add_parser("speech", help="clips and their texts", description="Measure clips of speech.")
    speech.add_argument("clips", type=Path, metavar="LIST", help="what is measured, with the texts that it should say")
    speech.add_argument("--layout", choices=_LAYOUTS, default="jsonl", help="of the list (jsonl)")
    speech.add_argument("--reference", type=Path, metavar="LIST", help="true speech of the same speakers")
    speech.add_argument("--reference-layout", choices=_LAYOUTS, default="jsonl", help="of that list (jsonl)")
    speech.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="folder for figures.json and clips.csv")
    speech.add_argument("--rate", type=positive, default=22050, metavar="HZ", help="at which functions get sound (22050)")
    add_function(speech, "recogniser", "transcribe(clips, rate) -> list of texts: word and character error rates")
    speech.add_argument(
        "--cleaner",
        choices=("english", "basic", "transliteration", "none"),
        default="none",
        help="how texts are normalised first, beyond case and punctuation (none)",
    )
    add_function(speech, "encoder", "embed(clips, rate) -> vectors of voices: their cosine with those of true speech")
    add_function(speech, "judge", "score(clips, rate) -> a number for each clip, such as an opinion score: the mean")
    add_function(speech, "features", "embed(clips, rate) -> vectors: the Fréchet distance from those of true speech")
    speech.add_argument("--batch-size", type=positive, default=16, metavar="N", help="clips that functions get at once (16)")
    speech.add_argument("--workers", type=count, default=0, metavar="N", help="processes of functions; 0: in this one (0)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the figures."""
    from dlas.data.audio.manifests import read_utterances
    from dlas.data.corpus.functions import ENCODER, FEATURES, JUDGE, RECOGNISER
    from dlas.inference.speech.evaluation import SpeechEvaluation
    from dlas.observe.lock import locked

    reference = arguments.reference
    evaluation = SpeechEvaluation(
        read_utterances(arguments.clips, arguments.layout),
        [] if reference is None else read_utterances(reference, arguments.reference_layout),
        arguments.output,
        rate=arguments.rate,
        recogniser=function_of(arguments, RECOGNISER),
        cleaner=None if arguments.cleaner == "none" else arguments.cleaner,
        encoder=function_of(arguments, ENCODER),
        judge=function_of(arguments, JUDGE),
        features=function_of(arguments, FEATURES),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    with (
        locked(arguments.output / ".evaluate" / "lock", f"measuring into {arguments.output}", "give another --output"),
        stages_shown() as begin,
    ):
        figures = evaluation.run(begin)
    for name, value in figures.items():
        print(f"{name:<22}{value:.4g}")
    return 0
