"""Which clip says what, and whose voice it is: the layouts of corpora of speech."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from dlas.data.audio.files import SUFFIXES
from dlas.errors import DataError, printable

Voice: TypeAlias = tuple[int, str]
"""A corpus and a speaker."""

Layout: TypeAlias = Literal["lj", "libritts", "vctk", "tsv", "jsonl", "mozilla_cv", "voxpopuli"]


@dataclass(frozen=True, slots=True)
class Utterance:
    """A clip.

    Args:
        path: the sound file.
        text: what is said.
        speaker: whose voice it is; clips of one speaker of a corpus have the same name here.
        corpus: number of the corpus that it is of.
        similar: clips that sound most like the same voice, where the list names some.
        seconds: how long it is, where the list tells.
    """

    path: Path
    text: str
    speaker: str
    corpus: int = 0
    similar: tuple[Path, ...] = ()
    seconds: float | None = None

    @property
    def voice(self) -> Voice:
        """Speakers of different corpora are different ones, whatever their names."""
        return self.corpus, self.speaker


def read_utterances(path: str | Path, layout: Layout) -> list[Utterance]:
    """The clips of a corpus.

    ==========  ==============================================================================================================
    layout      `path`, and what is in it
    ==========  ==============================================================================================================
    lj          a list `name|text` or `name|text|normalised text` (LJSpeech's metadata.csv), of one speaker. The clip is
                `wavs/name.wav` beside the list; a name with an ending is that of a file beside the list, or in `wavs`
    libritts    a folder that holds, at any depth, `SPEAKER/CHAPTER/NAME.wav` and `NAME.normalized.txt`
    vctk        the corpus's folder: `txt/SPEAKER/NAME.txt`, and below `wav48_silence_trimmed` (first microphone) or `wav48` a
                clip of this name
    tsv         `text`, tab, `file`, a line; files are relative to the list, and a speaker's lie in a folder of their own
    jsonl       `{"file": "a/b.wav", "text": "...", "speaker": "..."}` a line; the speaker is the file's folder where none is
                named. `"similar": ["a/c.wav"]` names clips that tell its voice, in place of all of the speaker's, and
                `"duration"` its seconds
    mozilla_cv  a list of Common Voice (`validated.tsv`, ...), whose first line names columns, among them `client_id`, `path`
                and `sentence`; clips are in `clips` beside it
    voxpopuli   a list of VoxPopuli's transcribed speech (`asr_train.tsv`, ...), likewise with `id`, `normalized_text` and
                `speaker_id`; the clip is `YEAR/ID.ogg` beside it, the year being the first four letters of its id
    ==========  ==============================================================================================================

    Raises:
        DataError: the list or folder is missing or empty, or holds something else; the line is named.
    """
    path = Path(path).expanduser()
    found = list(_READERS[layout](path))
    if not found:
        raise DataError(f"{printable(path)} has no clips in the layout '{layout}'; is it the right path and fetcher_mode?")
    return found


def split_line(line: str, where: str, folder: Path) -> tuple[str, Path, list[str]]:
    """Text, file and further columns of a line `text`, tab, `file`.

    Raises:
        DataError: there are not two columns.
    """
    text, *columns = line.rstrip("\r\n").split("\t")
    if not columns or not columns[0]:
        raise DataError(f"{where}: expected text, tab, file; found {printable(line[:80])!r}")
    return text, folder / columns[0], columns[1:]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not empty, with its place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}; expected a list of clips") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield line.rstrip("\r"), f"{printable(path)}:{number}"


def _lj(path: Path) -> Iterator[Utterance]:
    for line, where in _lines(path):
        name, *texts = line.split("|")
        if not texts:
            raise DataError(f"{where}: expected name|text; found {printable(line[:80])!r}")
        if Path(name).suffix.lower() not in SUFFIXES:
            clip = path.parent / "wavs" / f"{name}.wav"
        elif not (clip := path.parent / name).is_file():
            clip = path.parent / "wavs" / Path(name).name
        yield Utterance(clip, texts[-1], "")


def _folder(path: Path, layout: str) -> Path:
    if not path.is_dir():
        raise DataError(f"no folder at {printable(path)}; the layout '{layout}' is that of a folder")
    return path


def _libritts(path: Path) -> Iterator[Utterance]:
    for text in sorted(_folder(path, "libritts").rglob("*.normalized.txt")):
        clip = text.with_name(text.name.removesuffix(".normalized.txt") + ".wav")
        yield Utterance(clip, text.read_text(encoding="utf-8").strip(), text.parent.parent.name)


def _vctk(path: Path) -> Iterator[Utterance]:
    trimmed = (_folder(path, "vctk") / "wav48_silence_trimmed").is_dir()
    for text in sorted((path / "txt").glob("*/*.txt")):
        speaker, name = text.parent.name, text.stem
        clip = path / (f"wav48_silence_trimmed/{speaker}/{name}_mic1.flac" if trimmed else f"wav48/{speaker}/{name}.wav")
        if clip.is_file():  # some speakers have texts without clips
            yield Utterance(clip, text.read_text(encoding="utf-8").strip(), speaker)


def _tsv(path: Path) -> Iterator[Utterance]:
    for line, where in _lines(path):
        text, clip, _ = split_line(line, where, path.parent)
        yield Utterance(clip, text, str(clip.parent))


def _jsonl(path: Path) -> Iterator[Utterance]:
    for line, where in _lines(path):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: is not JSON ({error})") from error
        texts = [entry.get(key) for key in ("file", "text")] if isinstance(entry, dict) else [None]
        if not all(isinstance(each, str) for each in texts):
            raise DataError(f'{where}: expected a line like {{"file": "a/b.wav", "text": "..."}}, with or without "speaker"')
        similar = entry.get("similar", [])
        if not isinstance(similar, list) or not all(isinstance(each, str) for each in similar):
            raise DataError(f'{where}: expected "similar": ["a/b.wav", ...]; found {printable(similar)[:80]!r}')
        clip = path.parent / entry["file"]
        others = tuple(path.parent / each for each in similar)
        seconds = entry.get("duration")
        if seconds is not None and (not isinstance(seconds, int | float) or seconds <= 0):
            raise DataError(f'{where}: expected "duration": seconds, more than 0; found {printable(seconds)[:80]!r}')
        yield Utterance(clip, entry["text"], str(entry.get("speaker", clip.parent)), similar=others, seconds=seconds)


def _columns(path: Path, names: tuple[str, ...], layout: str) -> Iterator[tuple[str, ...]]:
    """Some columns of a table whose first line names them."""
    lines = _lines(path)
    header = next(lines, ("", ""))[0].split("\t")
    missing = [name for name in names if name not in header]
    if missing:
        raise DataError(
            f"{printable(path)}: its first line names no column {' and no '.join(missing)}; expected a list of the layout "
            f"'{layout}'"
        )
    places = [header.index(name) for name in names]
    for line, where in lines:
        entries = line.split("\t")
        if len(entries) <= max(places):
            raise DataError(f"{where}: has {len(entries)} columns, and the first line {len(header)}")
        yield tuple(entries[place].strip() for place in places)


def _mozilla_cv(path: Path) -> Iterator[Utterance]:
    for speaker, name, text in _columns(path, ("client_id", "path", "sentence"), "mozilla_cv"):
        clip = path.parent / "clips" / name
        # Older releases name clips without an ending.
        yield Utterance(clip if clip.suffix else clip.with_suffix(".mp3"), text, speaker)


def _voxpopuli(path: Path) -> Iterator[Utterance]:
    for name, text, speaker in _columns(path, ("id", "normalized_text", "speaker_id"), "voxpopuli"):
        if text:  # some have the original text alone
            yield Utterance(path.parent / name[:4] / f"{name}.ogg", text, speaker)


_READERS: dict[str, Callable[[Path], Iterator[Utterance]]] = {
    "lj": _lj,
    "libritts": _libritts,
    "vctk": _vctk,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "mozilla_cv": _mozilla_cv,
    "voxpopuli": _voxpopuli,
}
