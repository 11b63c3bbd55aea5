"""Makes a small corpus of speech with its texts, of recordings that lie in packages of Debian.

    python recipes/tortoise/make_corpus.py datasets/asterisk                  # English, one speaker, 22 minutes
    python recipes/tortoise/make_corpus.py datasets/asterisk --languages en es fr it ru

The recordings are the voice prompts of the telephone exchange Asterisk: five speakers, one a language, 16 kHz. Packages are
downloaded with apt and unpacked into a temporary folder; nothing is installed and no root is needed. ffmpeg decodes them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from debian_packages import PreparationError, fetch, unpack

LANGUAGES = ("en", "es", "fr", "it", "ru")
RATE = 16000  # Hz, of G.722
FEWEST_SECONDS = 1.0
HELD_OUT = 20  # every so many-th clip of a speaker is for validation
BATCH = 64  # files that one process of ffmpeg decodes


class Clip(NamedTuple):
    """A recording and what is said in it."""

    name: str
    text: str
    language: str
    source: Path


def packages(languages: list[str]) -> list[str]:
    """Texts are in the packages without an ending, recordings in the others."""
    return [f"asterisk-core-sounds-{language}{ending}" for language in languages for ending in ("", "-g722")]


def clips_of(tree: Path, language: str) -> Iterator[Clip]:
    """The recordings of a language that have a text, in the order of their names. Those of tones, in brackets, are left out.

    Raises:
        PreparationError: the package is of another form.
    """
    document = tree / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt"
    compressed = document.with_name(f"{document.name}.gz")
    if compressed.is_file():
        content = gzip.decompress(compressed.read_bytes())
    elif document.is_file():
        content = document.read_bytes()
    else:
        raise PreparationError(f"{document.relative_to(tree)}: is not in asterisk-core-sounds-{language} of this distribution")
    folders = [path for path in (tree / "usr/share/asterisk/sounds").glob(f"{language}_*") if path.is_dir()]
    texts = {}
    for line in content.decode("utf-8", errors="replace").splitlines():
        name, colon, text = line.partition(":")
        text = " ".join(text.split())
        if colon and not name.startswith(";") and any(letter.isalpha() for letter in re.sub(r"[\[<(].*?[\])>]", "", text)):
            texts[name.strip()] = text
    for name in sorted(texts):
        if "[" in texts[name] or "<" in texts[name]:  # in part a sound
            continue
        for folder in folders:
            if (source := folder / f"{name}.g722").is_file():
                yield Clip(name.replace("/", "-"), texts[name], language, source)


def decode(clips: list[Clip], folder: Path) -> dict[str, Path]:
    """Decodes recordings to FLAC.

    Raises:
        PreparationError: ffmpeg is not here, or fails.
    """
    if shutil.which("ffmpeg") is None:
        raise PreparationError("ffmpeg is not here; it decodes the recordings (G.722). Install it: apt-get install ffmpeg")
    folder.mkdir(parents=True, exist_ok=True)
    files = {clip.name: folder / f"{clip.name}.flac" for clip in clips}
    for start in range(0, len(clips), BATCH):
        some = clips[start : start + BATCH]
        inputs = [word for clip in some for word in ("-f", "g722", "-i", str(clip.source))]
        outputs = [
            word
            for number, clip in enumerate(some)
            for word in ("-map", str(number), "-ar", str(RATE), "-sample_fmt", "s16", "-bitexact", str(files[clip.name]))
        ]
        done = subprocess.run(["ffmpeg", "-v", "error", "-nostdin", *inputs, *outputs], capture_output=True, text=True)
        if done.returncode:
            raise PreparationError(f"ffmpeg failed: {''.join(done.stderr.strip().splitlines()[-1:])}")
    return files


def write(tree: Path, out: Path, languages: list[str]) -> dict[str, tuple[int, float]]:
    """Writes `clips/LANGUAGE/NAME.flac`, `train.jsonl`, `valid.jsonl` and the packages' licences.

    Returns:
        Clips and seconds of each list and language.
    """
    lists: dict[str, list[dict[str, object]]] = {"train": [], "valid": []}
    amounts: dict[str, tuple[int, float]] = {}
    for language in languages:
        clips = list(clips_of(tree, language))
        files = decode(clips, out / "clips" / language)
        kept = 0
        for clip in clips:
            seconds = soundfile.info(str(files[clip.name])).duration
            if seconds < FEWEST_SECONDS:
                files[clip.name].unlink()
                continue
            kept += 1
            part = "valid" if kept % HELD_OUT == 0 else "train"
            file = files[clip.name].relative_to(out).as_posix()
            lists[part].append({"file": file, "text": clip.text, "speaker": language, "duration": round(seconds, 3)})
            count, length = amounts.get(f"{part} {language}", (0, 0.0))
            amounts[f"{part} {language}"] = (count + 1, length + seconds)
        licence = tree / f"usr/share/doc/asterisk-core-sounds-{language}-g722/copyright"
        if licence.is_file():
            shutil.copyfile(licence, out / f"LICENCE.{language}.txt")
    for part, entries in lists.items():
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        (out / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return amounts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that is made; it must not exist or be empty")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=["en"], help="one speaker each (en)")
    parser.add_argument("--debs", type=Path, help="folder with the packages; what lacks there is downloaded into it and kept")
    given = parser.parse_args(arguments)
    languages = list(dict.fromkeys(given.languages))
    try:
        if given.out.exists() and any(given.out.iterdir()):
            raise PreparationError(f"{given.out} is not empty: name another folder, or delete it")
        given.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            debs, tree = given.debs or Path(scratch) / "debs", Path(scratch) / "tree"
            debs.mkdir(parents=True, exist_ok=True)
            tree.mkdir()
            fetch(debs, packages(languages), what="recordings", size="about 11 MB a language")
            unpack(debs, tree, packages(languages))
            amounts = write(tree, given.out, languages)
    except PreparationError as error:
        print(error, file=sys.stderr)
        return 1
    for name, (count, seconds) in amounts.items():
        print(f"{name}: {count} clips, {seconds / 60:.1f} minutes")
    return 0 if amounts else 1


if __name__ == "__main__":
    sys.exit(main())
