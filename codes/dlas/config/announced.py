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
        "rrdb_srflow": "RRDB trunk of SRFlow",
        "rrdb_latent_wrapper": "RRDB trunk as an extractor of features",
        "glean": "super-resolution with a StyleGAN2 latent bank",
        "stylegan_vgg": "discriminator of StyleGAN",
        "stylegan2_lucidrains": "StyleGAN2",
        "stylegan2_discriminator": "StyleGAN2",
        "discriminator_vgg_448": "VGG-style discriminator for 448 pixels",
        "byol": "self-supervised learning",
        "structural_byol": "self-supervised learning",
        "pixel_local_byol": "self-supervised learning of features per pixel",
        "segformer": "SegFormer",
        "spinenet": "SpineNet",
        "spinenet_with_logits": "SpineNet",
        "resnet50": "ResNet-50",
        "resnet52": "ResNet-50 under its older name",
        "lucidrains_dvae": "discrete autoencoder of TorToiSe",
        "clvp": "CLVP",
    },
    "injector": {},
    "loss": {
        "crossentropy": "classification",
        "cross_entropy": "classification",
        "stylegan2_divergence": "StyleGAN2",
    },
    "dataset": {
        "byol_dataset": "two views of each image",
        "multi_frame_extensible": "frames of videos",
        "paired_frame": "stereo pairs",
        "multiscale": "pyramids of patches",
        "torch_dataset": "data sets of torchvision",
    },
    "evaluator": {
        "flow_gaussian_nll": "likelihood of SRFlow's latents",
        "flownet_gaussian": "likelihood of SRFlow's latents, under its older name",
        "single_point_pair_contrastive_eval": "distances between features of points",
        "style_transfer": "Fréchet distance",
        "sr_style_transfer": "Fréchet distance",
        "sr_fid": "Fréchet distance",
        "fid_for_structural_nets": "Fréchet distance",
        "wer": "word error rate",
        "audio_diffusion_fid": "speech",
        "music_diffusion_fid": "music",
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
    said = f"no {kind} is called '{name}' yet ({meaning})"
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
