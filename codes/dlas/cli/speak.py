"""`dlas speak`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.errors import ConfigurationError, DataError, printable

if TYPE_CHECKING:
    from dlas.inference.speech.pipeline import Speaker, Spoken
    from dlas.inference.speech.voices import Voice

RANDOM = "random"

# Of the settings of `dlas.inference.speech.presets`, which imports torch.
_SETTINGS: dict[str, tuple[type, str]] = {
    "candidates": (int, "how often the text is said in codes, of which the best is heard"),
    "batch": (int, "candidates at a time, as memory allows; the sound does not depend on it"),
    "temperature": (float, "of codes; 0 takes the most likely one"),
    "top_p": (float, "codes are drawn from the most likely ones of this probability together"),
    "top_k": (int, "and from so many; 0: from all"),
    "repetition_penalty": (float, "on codes that occurred; 1: none"),
    "typical_mass": (float, "share of typical sampling; 1: off"),
    "max_codes": (int, "longest utterance, in codes (21.5 a second)"),
    "voice_share": (float, "share of the voice in the ranking, 0 to 1; needs cvvp.pth"),
    "sampler": (str, "of the decoder: ancestral, ddim or dpmpp_2m"),
    "steps": (int, "of the decoder"),
    "guidance": (float, "towards the text; 0 halves the decoder's time"),
    "start_noise": (float, "standard deviation of the noise that the decoder starts from"),
    "longest_text": (int, "letters that are said at once"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to say; - reads it from standard input")
    parser.add_argument(
        "--models", required=True, type=Path, metavar="FOLDER", help="where autoregressive.pth and the others are"
    )
    parser.add_argument(
        "--voice", default=RANDOM, metavar="PATH", help="a folder of clips, a clip, or saved latents; by default a random voice"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT.wav", help="the file to write; what it is made by is told beside it"
    )
    parser.add_argument(
        "--serve", type=int, nargs="?", const=8000, metavar="PORT", help="a web page on this machine that speaks (port 8000)"
    )
    parser.add_argument("--save-voice", type=Path, metavar="FILE", help="also write the latents of the voice (.safetensors)")
    parser.add_argument(
        "--preset", default="fast", metavar="NAME", help="ultra_fast, fast (the default), standard, high_quality"
    )
    parser.add_argument("--seed", type=int, default=0, help="another one is another performance")
    for name, (kind, words) in _SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"in place of the preset's: {words}")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of all networks but the vocoder")
    parser.add_argument("--compile", action="store_true", help="compile decoder and vocoder, for GPUs: minutes at first")


def run(arguments: argparse.Namespace) -> int:
    """Speaks, and writes the sound with a report."""
    from dlas.inference.speech.pipeline import Speaker

    if arguments.output is None and arguments.save_voice is None and arguments.serve is None:
        raise ConfigurationError(
            "nothing to write: name a file for the sound (-o out.wav) or for the voice (--save-voice), or take --serve"
        )
    if arguments.output is not None:
        if arguments.output.suffix.lower() != ".wav":
            raise ConfigurationError(f"{arguments.output}: sound is written as WAV: take a name that ends in .wav")
        if arguments.text is None:
            raise DataError("there is nothing to say: give a text, or - to read it from standard input")
    begun = time.perf_counter()
    speaker = Speaker.load(arguments.models, device=arguments.device, precision=arguments.precision, compile=arguments.compile)
    voice = speaker.voices.random(arguments.seed) if arguments.voice == RANDOM else speaker.voices.read(arguments.voice)
    print(
        f"networks from {printable(arguments.models)} on {speaker.device}, voice {printable(voice.name)}: "
        f"{time.perf_counter() - begun:.1f} s"
    )
    if arguments.save_voice is not None:
        voice.save(arguments.save_voice)
    if arguments.output is not None:
        _speak(speaker, voice, arguments)
    if arguments.serve is not None:
        _serve(speaker, voice, arguments)
    return 0


def _serve(speaker: Speaker, voice: Voice, arguments: argparse.Namespace) -> None:
    from dlas.inference.speech.presets import settings_of
    from dlas.inference.speech.serving import make_server

    changes = {name: value for name in _SETTINGS if (value := getattr(arguments, name)) is not None}
    settings_of(arguments.preset, **changes)
    with make_server(speaker, voice, arguments.serve, arguments.preset, changes) as server:
        print(f"http://127.0.0.1:{server.server_port} speaks; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


def _speak(speaker: Speaker, voice: Voice, arguments: argparse.Namespace) -> None:
    import torch

    from dlas.inference.speech.codes import SOUND_RATE
    from dlas.observe.sounds import write_wav

    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    settings = {name: getattr(arguments, name) for name in _SETTINGS}
    pieces: list[Spoken] = []
    for piece in speaker.say(text, voice, preset=arguments.preset, seed=arguments.seed, **settings):
        pieces.append(piece)
        spent = sum(piece.seconds.values())
        print(f"  {piece.duration:.1f} s in {spent:.1f} s: {printable(piece.text)}", flush=True)
    write_wav(arguments.output, torch.cat([piece.sound for piece in pieces]), SOUND_RATE)
    told = report(pieces)
    told |= {"preset": arguments.preset, "seed": arguments.seed, "settings": _chosen(arguments.preset, settings)}
    told |= {"voice": str(arguments.voice), "models": str(arguments.models), "precision": arguments.precision, "text": text}
    beside = arguments.output.with_suffix(".json")
    beside.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in told["seconds_by_stage"].items())
    cost = f"real-time factor {told['real_time_factor']:.2f}: {stages}"
    print(f"{printable(arguments.output)}: {told['seconds']:.1f} s of sound, {cost}")


def report(pieces: Sequence[Spoken]) -> dict[str, Any]:
    """What pieces of a text cost."""
    stages: dict[str, float] = {}
    for piece in pieces:
        for name, seconds in piece.seconds.items():
            stages[name] = round(stages.get(name, 0.0) + seconds, 4)
    duration = sum(piece.duration for piece in pieces)
    return {
        "seconds": round(duration, 4),
        "real_time_factor": round(sum(stages.values()) / duration, 4),
        "seconds_by_stage": stages,
        "pieces": [
            {"text": piece.text, "seconds": round(piece.duration, 4), "score": round(piece.score, 4)} for piece in pieces
        ],
    }


def _chosen(preset: str, changes: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from dlas.inference.speech.presets import settings_of

    return asdict(settings_of(preset, **changes))
