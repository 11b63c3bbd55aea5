"""Names of DL-Art-School's files that are known here and not built yet.

A file that names one of them is refused. Where it names a network, that is the one thing reported as an error: data sets,
injectors, losses and evaluators that would come with the network are mentioned as not checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dlas.config.problems import Problem
from dlas.config.typespec import Cursor

ANNOUNCED: dict[str, dict[str, str]] = {
    "network": {
        "structural_byol": "self-supervised learning",
        "spinenet": "SpineNet",
        "spinenet_with_logits": "SpineNet",
        "lucidrains_dvae": "discrete autoencoder of TorToiSe",
        "nv_tacotron2": "Tacotron 2",
        "nv_waveglow": "WaveGlow",
        "clvp": "CLVP",
    },
    "injector": {},
    "loss": {
        "nv_tacotron2_loss": "loss of Tacotron 2",
    },
    "dataset": {
        "multi_frame_extensible": "frames of videos",
        "paired_frame": "stereo pairs",
        "multiscale": "pyramids of patches",
    },
    "evaluator": {
        "mel": "loss of Tacotron 2 on a validation set",
        "style_transfer": "Fréchet distance",
        "sr_style_transfer": "Fréchet distance",
        "sr_fid": "Fréchet distance",
        "fid_for_structural_nets": "Fréchet distance",
        "wer": "word error rate",
        "audio_diffusion_fid": "speech",
        "music_diffusion_fid": "music",
    },
    "option": {
        "logger.is_mel_spectrogram": "pictures of mel spectrograms",
    },
}
"""Kind -> name -> what it is. An entry goes when its thing is built."""


@dataclass(frozen=True)
class NotBuiltYet(Problem):
    """Says that something announced is named."""

    kind: str = ""
    name: str = ""


def note_not_built(kind: str, name: str, cursor: Cursor) -> bool:
    """Notes that an announced thing is named; False, and nothing noted, if `name` is not announced."""
    meaning = ANNOUNCED.get(kind, {}).get(name)
    if meaning is None:
        return False
    article = "an" if kind[0] in "aeiou" else "a"
    said = f"no {kind} is called '{name}' yet ({meaning})" if kind != "option" else f"not supported yet ({meaning})"
    fix = f"DL-Art-School has {article} {kind} of this name; it is planned here"
    cursor.problems.append(NotBuiltYet(cursor.mark, cursor.path, said, fix, kind=kind, name=name))
    return True


def settle(problems: Iterable[Problem]) -> list[Problem]:
    """Brings what is announced down to one error where a network is among it: the rest would come with that network."""
    found = list(problems)
    networks = [p for p in found if isinstance(p, NotBuiltYet) and p.kind == "network"]
    if not networks:
        return found
    first, others = networks[0], networks[1:]
    further = "".join(f", nor '{p.name}' ({p.path}, line {p.mark.line})" for p in others)
    settled: list[Problem] = []
    for problem in found:
        if problem is first:
            settled.append(replace(first, message=first.message + further))
        elif isinstance(problem, NotBuiltYet) and problem.kind != "network":
            words = f"the {problem.kind} '{problem.name}' is not checked: it comes with the network '{first.name}', or later"
            settled.append(replace(problem, message=words, fix="", severity="warning"))
        elif problem not in others:
            settled.append(problem)
    return settled
