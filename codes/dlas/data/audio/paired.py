"""Speech with its text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from dlas.data.audio.batches import pad_to_longest
from dlas.data.audio.companions import Alone, Companions, by_voice, in_folder
from dlas.data.audio.files import as_paths, duration, read_sound
from dlas.data.audio.manifests import Utterance, Voice, read_utterances, split_line
from dlas.data.base import BadSample, Buckets, Dataset, Request, Sample, TensorSpec
from dlas.data.shards.folder import file_size
from dlas.data.text.cleaning import Cleaner
from dlas.data.text.symbols import LetterTokenizer
from dlas.data.text.tokenizer import VoiceTokenizer
from dlas.errors import ConfigurationError, DataError, printable
from dlas.layers.mel import MelSpectrogram
from dlas.registry import DATASETS
from dlas.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Tokenizer(Protocol):
    """Texts as numbers."""

    def encode(self, text: str) -> list[int]:
        """Numbers of a text."""


@dataclass(frozen=True)
class Reader:
    """Clips and texts as tensors, and which of them are used.

    Args:
        rate: of sound, in Hz.
        tokenizer: of texts.
        shortest: seconds that a clip has at least.
        longest: samples that it has at most.
        most_tokens: of a text.
    """

    rate: int
    tokenizer: Tokenizer
    shortest: float = 0.0
    longest: int | None = None
    most_tokens: int | None = None

    def read(self, path: Path, text: str) -> Sample:
        """`real_text`, `padded_text`, `text_lengths`, `wav`, `wav_lengths` and `filenames` of a clip.

        Raises:
            BadSample: the file is unusable, or clip or text are too long or too short.
        """
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise BadSample(path, "has no text: nothing is left of it after cleaning; correct or remove its entry")
        if self.most_tokens is not None and len(tokens) > self.most_tokens:
            raise BadSample(path, f"has a text of {len(tokens)} tokens, and max_text_length is {self.most_tokens}; split it")
        sound = read_sound(path, self.rate)
        if len(sound) < self.shortest * self.rate:
            raise BadSample(path, f"has {len(sound) / self.rate:.2f} s, and min_seconds is {self.shortest:g}; remove it")
        if self.longest is not None and len(sound) > self.longest:
            raise BadSample(path, f"has {len(sound)} samples at {self.rate} Hz, and max_wav_length is {self.longest}; split it")
        return {
            "real_text": text,
            "padded_text": torch.tensor(tokens),
            "text_lengths": len(tokens),
            "wav": sound[None],
            "wav_lengths": len(sound),
            "filenames": str(path),
        }


@dataclass(frozen=True)
class Bucketing:
    """How clips of about one length are put together.

    Args:
        batches: within so many batches at a time; 0: not at all.
        seconds: most that a batch holds, padding included.

    Raises:
        ConfigurationError: `seconds` is told without `batches`.
    """

    batches: int
    seconds: float | None

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.batches:
            raise ConfigurationError(
                "batch_seconds puts clips of about one length together; write bucket_batches, for example 50"
            )

    def of(self, clips: Sequence[Utterance]) -> Buckets | None:
        """What batches of these clips are put together by."""
        if not self.batches:
            return None
        if self.seconds is not None:
            return Buckets([_seconds(clip) for clip in clips], self.batches, self.seconds)
        # Files of a corpus are of one kind, whose size tells the length.
        return Buckets([file_size(clip.path) for clip in clips], self.batches)


def _seconds(clip: Utterance) -> float:
    if clip.seconds is not None:
        return clip.seconds
    try:
        return duration(clip.path)
    except BadSample:  # `on_bad_file` decides when it is its turn
        return 0.0


def specified(options: Mapping[str, Any]) -> Sample | None:
    """A sample as long as the options allow; None where they set no limit."""
    text, sound = options["max_text_length"], options["max_wav_length"]
    if text is None or sound is None:
        return None
    sample: Sample = {
        "real_text": "a text",
        "padded_text": TensorSpec((text,), torch.int64),
        "text_lengths": text,
        "wav": TensorSpec((1, sound)),
        "wav_lengths": sound,
        "filenames": "clip.wav",
    }
    if options["load_conditioning"]:
        shape = Companions(options["num_conditioning_candidates"], options["conditioning_length"], 1, "error").shape
        sample["conditioning"] = TensorSpec(shape)
        sample["conditioning_contains_self"] = False
    return sample


def tokenizer_of(bpe: bool, vocabulary: str | None, cleaner: Cleaner) -> Tokenizer:
    """What the options of a data set say of texts.

    Raises:
        ConfigurationError: byte-pair encoding is asked for without a vocabulary, or the other way round.
    """
    if bpe and vocabulary is None:
        raise ConfigurationError(
            "use_bpe_tokenizer needs tokenizer_vocab: the path of a tokenizer.json, such as that of tortoise-tts; or say "
            "`use_bpe_tokenizer: false`, for letters"
        )
    if not bpe and vocabulary is not None:
        raise ConfigurationError("tokenizer_vocab has no effect with `use_bpe_tokenizer: false`; remove one of the two")
    return VoiceTokenizer(vocabulary, cleaner, training_signs=True) if vocabulary is not None else LetterTokenizer(cleaner)


def companions_of(wanted: bool, count: int, length: int, rate: int, alone: Alone) -> Companions | None:
    """What the options of a data set say of conditioning."""
    return Companions(count, length, rate, alone) if wanted else None


class _Listed(Dataset):
    """What data sets of a list of clips have in common. A subclass sets the attributes."""

    clips: list[Utterance]
    voices: dict[Voice, list[Path]]
    reader: Reader
    companions: Companions | None
    bucketing: Bucketing

    collate = staticmethod(pad_to_longest)

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: there are no images."""

    def __len__(self) -> int:
        return len(self.clips)

    def source(self, index: int) -> str:
        return str(self.clips[index].path)

    def identity(self, index: int) -> str:
        return f"{super().identity(index)} {self.clips[index].text}"

    def buckets(self) -> Buckets | None:
        return self.bucketing.of(self.clips)

    def _list(self, clips: list[Utterance]) -> None:
        if self.companions is None:
            self.clips, self.voices = clips, {}
        else:
            self.clips, self.voices = by_voice(clips, self.companions.alone)

    def _read(self, request: Request) -> Sample:
        clip = self.clips[request.index]
        sample = self.reader.read(clip.path, clip.text)
        if self.companions is not None:
            sample |= conditioning(self.companions, clip.path, clip.similar or self.voices[clip.voice], request)
        return sample


def conditioning(companions: Companions, path: Path, of_voice: Sequence[Path], request: Request) -> Sample:
    """The entries of a sample that tell its voice."""
    parts, own = companions.beside(path, of_voice, request.rng("conditioning"))
    return {"conditioning": parts, "conditioning_contains_self": own}


@DATASETS.register("paired_voice_audio")
class PairedVoiceAudio(_Listed):
    """Clips of speech with their texts, from corpora in several layouts.

    Gives `wav` (B, 1, N), `wav_lengths`, `padded_text` (B, T, whole numbers, filled up with 0), `text_lengths`, `real_text`,
    `filenames` and `type`; with `load_conditioning` also `conditioning`, (B, 1, L), or of several (B, n, 1, L), and
    `conditioning_contains_self`. N and T are those of the longest in the batch. Batches are best of one length: see
    `bucket_batches`.

    Args:
        phase: conditioning clips are drawn as a function of the seed and the sample's place in the order, in all phases.
        path: list or folder of a corpus, or several.
        fetcher_mode: layout of each: `lj` (name|text), `libritts`, `vctk`, `tsv` (text, tab, file), `jsonl` (file, text,
            speaker), `mozilla_cv` (a list of Common Voice) or `voxpopuli` (a list of it).
        types: number of each corpus, given as `type`; 0 by default.
        sample_rate: of `wav` and `conditioning`, in Hz.
        max_wav_length: samples of the longest clip that is used.
        max_text_length: tokens of the longest text that is used.
        min_seconds: length of the shortest clip that is used.
        load_conditioning: also give parts of other clips of the same speaker.
        num_conditioning_candidates: how many.
        conditioning_length: samples of each; shorter clips are filled up with zeros.
        only_clip: the only clip of a speaker: `error` stops at the start, `skip` leaves it out, `self` gives the clip itself.
        use_bpe_tokenizer: texts as tokens of `tokenizer_vocab`; false: as letters (English, 64 signs).
        tokenizer_vocab: a tokenizer.json: that of tortoise-tts, or one that `dlas data tokenizer` has made.
        text_cleaner: what is done to texts first: `basic`: lower case and single blanks; `transliteration`: also without
            accents; `english`: also numbers and abbreviations as words.
        bucket_batches: batches of clips of about one length are put together within so many batches at a time; 0: as they come.
        batch_seconds: most seconds of sound in a batch of training, padding included: batches of short clips have more of
            them, up to `batch_size`. Needs `bucket_batches`.
        on_bad_file: `error` stops at a damaged, too short or too long clip; `skip` takes another one and reports it.

    Raises:
        ConfigurationError: options do not go together.
        DataError: a list or folder is missing or holds something else, or a speaker has one clip only.
    """

    provides = (
        "real_text",
        "padded_text",
        "text_lengths",
        "wav",
        "wav_lengths",
        "filenames",
        "type",
        "conditioning",
        "conditioning_contains_self",
    )

    def __init__(
        self,
        phase: str,
        /,
        *,
        path: str | list[str],
        fetcher_mode: Literal["lj", "libritts", "vctk", "tsv", "jsonl", "mozilla_cv", "voxpopuli"]
        | list[Literal["lj", "libritts", "vctk", "tsv", "jsonl", "mozilla_cv", "voxpopuli"]] = "lj",
        types: list[int] | None = None,
        sample_rate: PositiveInt = 22050,
        max_wav_length: PositiveInt | None = None,
        max_text_length: PositiveInt | None = None,
        min_seconds: NonNegativeFloat = 0.6,
        load_conditioning: bool = False,
        num_conditioning_candidates: PositiveInt = 1,
        conditioning_length: PositiveInt = 44100,
        only_clip: Literal["error", "skip", "self"] = "error",
        use_bpe_tokenizer: bool = True,
        tokenizer_vocab: str | None = None,
        text_cleaner: Literal["english", "basic", "transliteration"] = "english",
        bucket_batches: NonNegativeInt = 0,
        batch_seconds: PositiveFloat | None = None,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        paths = as_paths(path)
        layouts = [fetcher_mode] * len(paths) if isinstance(fetcher_mode, str) else fetcher_mode
        numbers = [0] * len(paths) if types is None else types
        if not len(paths) == len(layouts) == len(numbers):
            raise ConfigurationError(
                f"{len(paths)} paths, {len(layouts)} fetcher_mode and {len(numbers)} types: give one of each for every path"
            )
        self.reader = Reader(
            sample_rate,
            tokenizer_of(use_bpe_tokenizer, tokenizer_vocab, text_cleaner),
            min_seconds,
            max_wav_length,
            max_text_length,
        )
        self.companions = companions_of(
            load_conditioning, num_conditioning_candidates, conditioning_length, sample_rate, only_clip
        )
        self.bucketing = Bucketing(bucket_batches, batch_seconds)
        self.on_bad_file = on_bad_file
        corpora = [read_utterances(each, layout) for each, layout in zip(paths, layouts, strict=True)]
        self._list([replace(clip, corpus=corpus) for corpus, clips in enumerate(corpora) for clip in clips])
        self.types = numbers

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample | None:
        sample = specified(options)
        return None if sample is None else sample | {"type": 0}

    def __getitem__(self, request: Request) -> Sample:
        return self._read(request) | {"type": self.types[self.clips[request.index].corpus]}


@DATASETS.register("nv_tacotron")
class TacotronAudio(_Listed):
    """Clips with their texts in letters and their spectrograms, as Tacotron 2 is trained on.

    Gives `padded_text` (B, T), `input_lengths` (also as `text_lengths`), `padded_mel` (B, n_mel_channels, F), `padded_gate`
    (B, F: 1 from the last frame on), `output_lengths`, `wav` (B, 1, N), `wav_lengths`, `real_text` and `filenames`, with
    `load_conditioning` also `conditioning` (B, n, 1, L). Samples keep their order: they are not sorted by length.

    Args:
        phase: conditioning clips are drawn as a function of the seed and the sample's place in the order, in all phases.
        path: list or folder of a corpus, or several.
        fetcher_mode: layout of them, as of `paired_voice_audio`.
        sample_rate: in Hz.
        max_wav_length: samples of the longest clip that is used.
        max_text_length: letters of the longest text that is used.
        load_conditioning: also give parts of other clips of the same speaker.
        num_conditioning_candidates: how many.
        conditioning_length: samples of each.
        only_clip: as of `paired_voice_audio`.
        n_mel_channels: of spectrograms, which have 1024 samples a window and 256 a step.
        mel_fmin: their lowest frequency, in Hz.
        mel_fmax: their highest.
        bucket_batches: as of `paired_voice_audio`.
        batch_seconds: likewise.
        on_bad_file: `error` stops at a damaged or too long clip; `skip` takes another one and reports it.

    Raises:
        DataError: a list or folder is missing or holds something else, or a speaker has one clip only.
    """

    provides = (
        "real_text",
        "padded_text",
        "text_lengths",
        "input_lengths",
        "padded_mel",
        "padded_gate",
        "output_lengths",
        "wav",
        "wav_lengths",
        "filenames",
        "conditioning",
        "conditioning_contains_self",
    )

    def __init__(
        self,
        phase: str,
        /,
        *,
        path: str | list[str],
        fetcher_mode: Literal["lj", "libritts", "vctk", "tsv", "jsonl", "mozilla_cv", "voxpopuli"] = "lj",
        sample_rate: PositiveInt = 22050,
        max_wav_length: PositiveInt | None = None,
        max_text_length: PositiveInt | None = None,
        load_conditioning: bool = False,
        num_conditioning_candidates: PositiveInt = 3,
        conditioning_length: PositiveInt = 44100,
        only_clip: Literal["error", "skip", "self"] = "error",
        n_mel_channels: PositiveInt = 80,
        mel_fmin: NonNegativeFloat = 0.0,
        mel_fmax: NonNegativeFloat = 8000.0,
        bucket_batches: NonNegativeInt = 0,
        batch_seconds: PositiveFloat | None = None,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        self.reader = Reader(sample_rate, LetterTokenizer(), 0.0, max_wav_length, max_text_length)
        self.companions = companions_of(
            load_conditioning, num_conditioning_candidates, conditioning_length, sample_rate, only_clip
        )
        self.bucketing = Bucketing(bucket_batches, batch_seconds)
        self.on_bad_file = on_bad_file
        self.spectrogram = MelSpectrogram(
            sampling_rate=sample_rate, n_mel_channels=n_mel_channels, mel_fmin=mel_fmin, mel_fmax=mel_fmax
        )
        self._list([clip for each in as_paths(path) for clip in read_utterances(each, fetcher_mode)])

    def __getitem__(self, request: Request) -> Sample:
        sample = self._read(request)
        mel = self.spectrogram(sample["wav"])[0]
        frames = mel.shape[-1]
        more = {"padded_mel": mel, "padded_gate": (torch.arange(frames) == frames - 1).float(), "output_lengths": frames}
        return sample | more | {"input_lengths": sample["text_lengths"]}

    @staticmethod
    def collate(samples: Sequence[Sample], sources: Sequence[str]) -> dict[str, Any]:
        batch = pad_to_longest(samples, sources)
        frames = torch.arange(batch["padded_gate"].shape[-1])
        return batch | {"padded_gate": (frames >= batch["output_lengths"][:, None] - 1).float()}


@DATASETS.register("fast_paired_voice_audio")
class FastPairedVoiceAudio(Dataset):
    """Clips with their texts from a list of any size: `text`, tab, `file` a line, with or without a third column of codes.

    The list is not kept in memory, only where its lines begin; a line is read when it is its turn. A speaker is a folder.
    Gives what `paired_voice_audio` gives, without `type`; with `load_aligned_codes` also `aligned_codes` (B, S) and
    `aligned_codes_lengths`.

    Args:
        phase: conditioning clips are drawn as a function of the seed and the sample's place in the order, in all phases.
        path: the list, or several; files are relative to it.
        sample_rate: of `wav` and `conditioning`, in Hz.
        max_wav_length: samples of the longest clip that is used.
        max_text_length: tokens of the longest text that is used.
        min_seconds: length of the shortest clip that is used.
        load_conditioning: also give parts of other clips in the same folder.
        num_conditioning_candidates: how many.
        conditioning_length: samples of each; shorter clips are filled up with zeros.
        only_clip: the only clip of a folder: a bad file for `error` and `skip`, with `self` its own conditioning.
        load_aligned_codes: give the third column: whole numbers with blanks between them.
        use_bpe_tokenizer: texts as tokens of `tokenizer_vocab`; false: as letters (English, 64 signs).
        tokenizer_vocab: a tokenizer.json: that of tortoise-tts, or one that `dlas data tokenizer` has made.
        text_cleaner: what is done to texts first: `basic`: lower case and single blanks; `transliteration`: also without
            accents; `english`: also numbers and abbreviations as words.
        on_bad_file: `error` stops at a damaged, too short or too long clip; `skip` takes another one and reports it.

    Raises:
        ConfigurationError: options do not go together.
        DataError: a list is missing or empty.
    """

    provides = (
        "real_text",
        "padded_text",
        "text_lengths",
        "wav",
        "wav_lengths",
        "filenames",
        "conditioning",
        "conditioning_contains_self",
        "aligned_codes",
        "aligned_codes_lengths",
    )

    def __init__(
        self,
        phase: str,
        /,
        *,
        path: str | list[str],
        sample_rate: PositiveInt = 22050,
        max_wav_length: PositiveInt | None = None,
        max_text_length: PositiveInt | None = None,
        min_seconds: NonNegativeFloat = 0.6,
        load_conditioning: bool = False,
        num_conditioning_candidates: PositiveInt = 1,
        conditioning_length: PositiveInt = 44100,
        only_clip: Literal["error", "skip", "self"] = "error",
        load_aligned_codes: bool = False,
        use_bpe_tokenizer: bool = False,
        tokenizer_vocab: str | None = None,
        text_cleaner: Literal["english", "basic", "transliteration"] = "english",
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        self.lists = as_paths(path)
        self.places = [_line_starts(each) for each in self.lists]
        self.ends = list(itertools.accumulate(len(each) for each in self.places))
        self.reader = Reader(
            sample_rate,
            tokenizer_of(use_bpe_tokenizer, tokenizer_vocab, text_cleaner),
            min_seconds,
            max_wav_length,
            max_text_length,
        )
        self.companions = companions_of(
            load_conditioning, num_conditioning_candidates, conditioning_length, sample_rate, only_clip
        )
        self.codes = load_aligned_codes
        self.on_bad_file = on_bad_file

    collate = staticmethod(pad_to_longest)

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: there are no images."""

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample | None:
        return None if options["load_aligned_codes"] else specified(options)

    def __len__(self) -> int:
        return self.ends[-1]

    def source(self, index: int) -> str:
        return str(self._line(index)[1])

    def __getitem__(self, request: Request) -> Sample:
        text, path, columns = self._line(request.index)
        sample = self.reader.read(path, text)
        if self.companions is not None:
            sample |= conditioning(self.companions, path, in_folder(path.parent), request)
        if self.codes:
            try:
                codes = [int(each) for each in columns[0].split()]
            except (IndexError, ValueError) as error:
                raise BadSample(path, "has no third column of whole numbers in its list; write one, or remove it") from error
            sample |= {"aligned_codes": torch.tensor(codes), "aligned_codes_lengths": len(codes)}
        return sample

    def _line(self, index: int) -> tuple[str, Path, list[str]]:
        which = next(number for number, end in enumerate(self.ends) if index < end)
        row = index - (self.ends[which] - len(self.places[which]))
        with self.lists[which].open("rb") as file:
            file.seek(int(self.places[which][row]))
            line = file.readline()
        where = f"{printable(self.lists[which])}, line of byte {self.places[which][row]}"
        try:
            return split_line(line.decode(), where, self.lists[which].parent)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: is not UTF-8; save the list as UTF-8") from error


def _line_starts(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Byte at which each line begins that is not empty.

    Raises:
        DataError: the list is missing or empty.
    """
    starts, place = [], 0
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    starts.append(place)
                place += len(line)
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}; expected text, tab, file a line") from error
    if not starts:
        raise DataError(f"{printable(path)} has no lines; expected text, tab, file a line")
    return np.array(starts, dtype=np.int64)
