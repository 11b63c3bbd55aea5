"""One recording: read, cut into clips, judged, written, and recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from dlas.data.audio.files import list_sounds, read_sound, sampling_rate
from dlas.data.base import BadSample
from dlas.data.corpus.plan import SpeechPlan
from dlas.data.corpus.quality import measure
from dlas.data.corpus.splitting import speech_parts
from dlas.data.images.pairs import unique_names
from dlas.data.preparation import records
from dlas.data.preparation.folder import sources_of
from dlas.data.preparation.records import Planned, Record
from dlas.layers.mel import resample

CLIPS = "clips"
"""Folder of the clips, below that of the results."""

Classifier = Callable[[Tensor, int], list[float]]
"""Sound (N,) and its rate; the probability of each kind of sound."""


class Recording(NamedTuple):
    """A recording that is to be cut.

    Args:
        source: its file.
        name: what its clips are called; no two recordings share one.
        speaker: whose voice it is.
    """

    source: Path
    name: str
    speaker: str


@dataclass(frozen=True)
class Outcome:
    """What became of a recording.

    Args:
        record: of its clips; `details["parts"]` tells what was cut, kept or not. None if it cannot be read.
        state: cut now, there already, or damaged.
        fault: why it cannot be read.
    """

    record: Record | None
    state: Literal["made", "there", "damaged"]
    fault: str = ""


def recordings_of(folders: Sequence[Path], out: Path, speaker: Literal["folder", "file"]) -> list[Recording]:
    """The recordings below some folders, each with a name of its own and its speaker.

    A speaker is called after the folder that the recording lies in, or after the recording.

    Raises:
        ConfigurationError: results would lie among the sources.
        DataError: a folder is missing or empty.
    """
    found = sources_of(folders, out, list_sounds)
    roots = [folder.expanduser().absolute() for folder in folders]
    titles = dict(zip(roots, unique_names(roots) if len(roots) > 1 else [""], strict=True))

    def voice(source: Path, name: str) -> str:
        if speaker == "file":
            return name
        root = next(root for root in roots if source.is_relative_to(root))
        inside = source.parent.relative_to(root).as_posix()
        return "/".join(part for part in (titles[root], inside) if part not in ("", ".")) or root.name

    return [Recording(source, name, voice(source, name)) for source, name in found]


def cut_recording(
    recording: Recording, *, out: Path, plan: SpeechPlan, whole: bool, classifier: Classifier | None = None
) -> Outcome:
    """Makes the clips of a recording that are missing.

    Args:
        recording: what to cut.
        out: folder of the results.
        plan: what to make.
        whole: compare earlier results with their checksums.
        classifier: tells kinds of sound, of which `plan.keep_label` is kept.
    """
    seen = records.look(out, recording.name, recording.source, whole=whole)
    if seen.sound:
        return Outcome(seen.record, "there")
    try:
        rate = sampling_rate(recording.source)
        sound = read_sound(recording.source, rate)
    except BadSample as error:
        records.forget(out, recording.name, seen.files)
        return Outcome(None, "damaged", str(error))
    parts: list[dict[str, Any]] = []
    planned: list[Planned] = []
    for start, end in speech_parts(sound, rate, plan):
        part: dict[str, Any] = {"start": round(start / rate, 4), "end": round(end / rate, 4)}
        clip = sound[start:end]
        faults = _judge(clip, rate, plan, classifier, part)
        if faults:
            part["rejected"] = faults
        else:
            part["file"] = f"{CLIPS}/{recording.name}/{len(planned) + 1:05d}.{plan.format}"
            planned.append(Planned(part["file"], 0, 0, partial(_encoded, clip, rate, plan)))
        parts.append(part)
    details = {"seconds": round(len(sound) / rate, 4), "parts": parts}
    empty = Record(str(recording.source), *seen.identity, details=details)
    return Outcome(records.make(out, recording.name, empty, seen.files, planned), "made")


def _judge(clip: Tensor, rate: int, plan: SpeechPlan, classifier: Classifier | None, part: dict[str, Any]) -> list[str]:
    """Why a clip is not wanted; what was measured of it goes into `part`."""
    seconds = len(clip) / rate
    if not plan.min_seconds <= seconds <= plan.max_seconds:
        return ["too short" if seconds < plan.min_seconds else "too long"]
    quality = measure(clip, rate)
    part |= {name: round(value, 4 if name == "clipped" else 1) for name, value in quality._asdict().items()}
    faults = quality.faults(plan)
    if classifier is not None:
        shares = classifier(resample(clip, rate, plan.rate), plan.rate)
        part["label"] = max(range(len(shares)), key=shares.__getitem__)
        faults += ["classified"] if part["label"] != plan.keep_label else []
    return faults


def _encoded(clip: Tensor, rate: int, plan: SpeechPlan) -> bytes:
    import soundfile  # the recording was read with it

    file = BytesIO()
    sound = resample(clip, rate, plan.rate).clamp(-1, 1)
    soundfile.write(file, sound.numpy(), plan.rate, format=plan.format.upper(), subtype="PCM_16")
    return file.getvalue()
