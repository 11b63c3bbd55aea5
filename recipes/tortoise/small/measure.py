"""Measures the networks of a small TorToiSe on clips that none of them was trained on, and lets them speak their texts.

    python recipes/tortoise/small/measure.py -o experiments/small_measured \\
        --recogniser recipes/tortoise/whisper_recogniser.py --recogniser-option model=FOLDER \\
        --encoder recipes/tortoise/resemblyzer_encoder.py

Writes figures.json, samplers.svg, a picture of spectrograms, and for each way of saying held-out sentences a folder of sounds
with their list. `dlas evaluate speech` measures these where a recogniser or an encoder is named. README.md tells what each is.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.archs import create_network
from dlas.archs.speech.univnet import TAIL
from dlas.config import load
from dlas.data.audio.files import read_sound
from dlas.data.audio.manifests import Utterance, read_utterances
from dlas.diffusion.sampling import seeded_noise
from dlas.inference.speech.codes import CODE_RATE, SOUND_RATE, frames_of
from dlas.inference.speech.pipeline import Speaker
from dlas.inference.speech.stages import features_of, spectrogram_of
from dlas.inference.speech.voices import Voice
from dlas.injectors.speech import codes_of
from dlas.interop.state_dicts import load_into, read_state_dict
from dlas.layers.mel import MelSpectrogram, denormalise_mel, resample, to_hertz, to_mel
from dlas.metrics.codes import codebook_use
from dlas.metrics.error_rate import character_errors
from dlas.observe.sounds import spectrogram_picture, write_wav

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from train_all import overrides_of, weights  # noqa: E402 beside this file

DECIBELS = 20 / math.log(10)
"""Of a difference of 1 of logarithms of magnitudes; half of that of logarithms of powers."""

AUDIBLE = 8000.0
"""Errors of spectrograms are of bins up to here, in Hz: the autoencoder's end there."""

VOICE_CLIPS = 4
"""Training clips of a speaker that tell the voice."""

TOGETHER = 32
"""Clips among which CLVP finds the one that a text is said in."""

PARTS = ("autoencoder", "codes", "clvp", "decoder", "samplers", "said")

WAYS = [("ancestral", steps) for steps in (10, 20, 50, 100, 200)]
WAYS += [(sampler, steps) for sampler in ("ddim", "dpmpp_2m") for steps in (3, 5, 8, 10, 20)]


@dataclass
class Held:
    """A held-out clip.

    Args:
        utterance: file, text and speaker.
        sound: at `CODE_RATE`, (N,).
        power: log-power spectrogram, (80, T).
        codes: of it, (L,).
        mel: log-magnitude spectrogram at `SOUND_RATE`, (100, T').
    """

    utterance: Utterance
    sound: Tensor
    power: Tensor
    codes: Tensor
    mel: Tensor


class Measured:
    """The networks, and what they are measured on.

    Args:
        models: folder that `dlas speak` reads.
        corpus: folder with train.jsonl and valid.jsonl.
        overrides: of the recipes' files.
        most: held-out clips at most.
    """

    def __init__(self, models: Path, corpus: Path, overrides: list[str], most: int) -> None:
        self.speaker = Speaker.load(models, device="cpu")
        self.norms = self.speaker.models.mel_norms[:, None]
        section = load(HERE / "dvae.yml", overrides_of("dvae", overrides)).networks["dvae"]
        self.dvae: Any = create_network({"which_model": section.which_model, **section.options}).eval()
        file = weights("dvae", "dvae", overrides)
        load_into(self.dvae, read_state_dict(file), source=str(file))
        self.power = MelSpectrogram(power=2, scale="htk")
        bins = self.speaker.models.decoder.inp_block.in_channels
        self.mel = MelSpectrogram(sampling_rate=SOUND_RATE, n_mel_channels=bins, mel_fmax=SOUND_RATE / 2)
        highest = to_mel(torch.tensor(SOUND_RATE / 2), "slaney")
        self.audible = to_hertz(torch.linspace(0, float(highest), bins + 2)[1:-1], "slaney") < AUDIBLE
        self.train = read_utterances(corpus / "train.jsonl", "jsonl")
        speakers = sorted({each.speaker for each in self.train})
        valid = read_utterances(corpus / "valid.jsonl", "jsonl")
        mixed = [
            each for group in zip(*([u for u in valid if u.speaker == s] for s in speakers), strict=False) for each in group
        ]
        self.held = [self.read(each) for each in mixed[:most]]
        self.voices = {name: self.voice([u for u in self.train if u.speaker == name][:VOICE_CLIPS]) for name in speakers}
        self.bridge = self.fit_bridge()

    def read(self, utterance: Utterance) -> Held:
        """A clip with its spectrograms and codes."""
        sound = read_sound(utterance.path, CODE_RATE)
        mel = self.mel(resample(sound, CODE_RATE, SOUND_RATE).clamp(-1, 1)[None])[0]
        return Held(utterance, sound, self.power(sound[None])[0], self.codes(sound), mel)

    def codes(self, sound: Tensor) -> Tensor:
        """Codes of sound, as many as the networks are trained on."""
        return codes_of(self.dvae, "dvae", self.power(sound[None]) / self.norms)[0, : len(sound) // 1024]

    def voice(self, clips: list[Utterance]) -> Voice:
        """The voice of some clips."""
        return self.speaker.voices.of_clips([(read_sound(each.path, CODE_RATE), CODE_RATE) for each in clips])

    def reconstructed(self, power: Tensor) -> Tensor:
        """What the autoencoder makes of (80, T)."""
        padded = F.pad(power / self.norms, (0, -power.shape[1] % self.dvae.factor))
        found: Tensor = self.dvae(padded[None])[2][0, :, : power.shape[1]]
        return found * self.norms

    def fit_bridge(self, clips: int = 150) -> Tensor:
        """Least squares from three frames of the autoencoder's spectrogram to one of the decoder's, on true training clips."""
        pairs = [self.read(each) for each in self.train[:: max(1, len(self.train) // clips)]]
        x = torch.cat([windows(each.power, each.mel.shape[1]) for each in pairs]).double()
        y = torch.cat([each.mel.T for each in pairs]).double()
        square = x.T @ x
        return torch.linalg.solve(square + 1e-3 * square.diagonal().mean() * torch.eye(len(square)).double(), x.T @ y).float()

    def across(self, power: Tensor, frames: int) -> Tensor:
        """(80, T) as the decoder's kind of spectrogram, (100, frames)."""
        return (windows(power, frames) @ self.bridge).T

    def aligned(self, held: Held) -> Tensor:
        """What the decoder reads of a clip's true codes: (1, L), or features (1, L, channels) with its text."""
        models = self.speaker.models
        if models.description.decoder_reads == "codes":
            return held.codes[None]
        tokens = torch.tensor([[*models.tokenizer.encode(held.utterance.text), 0]])
        return features_of(models.gpt, self.voices[held.utterance.speaker].speech, tokens, held.codes[None])

    def decoded(self, held: Held, frames: int, sampler: str, steps: int, seed: int) -> Tensor:
        """What the decoder makes of a clip's true codes, (100, frames)."""
        models = self.speaker.models
        noise = seeded_noise(seed, [0], (len(self.audible), frames))
        given = self.aligned(held), self.voices[held.utterance.speaker].sound
        kind: Any = models.description.decoder_predicts
        made = spectrogram_of(
            models.decoder, models.process, *given, frames, noise, steps=steps, sampler=sampler, prediction=kind
        )
        return made[0]

    def sounded(self, mel: Tensor) -> Tensor:
        """What the vocoder makes of (100, T)."""
        z = seeded_noise(0, [0], (self.speaker.models.vocoder.noise_dim, mel.shape[1] + TAIL))(0)
        return self.speaker.models.vocoder.inference(mel[None], z)[0, 0]

    def error(self, found: Tensor, true: Tensor) -> float:
        """Mean absolute difference of two of the decoder's spectrograms in decibels, of the bins that are compared."""
        return DECIBELS * float((found - true)[self.audible].abs().mean())

    def changes(self, mel: Tensor) -> Tensor:
        """Mean absolute difference of neighbouring frames: less than the true one's is blurred, more is noise."""
        return mel[self.audible].diff(dim=1).abs().mean()


def windows(power: Tensor, frames: int) -> Tensor:
    """(80, T) at the times of the decoder's frames, each with its neighbours and a 1: (frames, 241)."""
    place = (torch.arange(frames) * CODE_RATE / SOUND_RATE).clamp(max=power.shape[1] - 1)
    left = place.floor().long()
    right = (left + 1).clamp(max=power.shape[1] - 1)
    at = torch.lerp(power[:, left], power[:, right], place - left)
    padded = F.pad(at[None], (1, 1), mode="replicate")[0]
    return torch.cat((padded[:, :-2], padded[:, 1:-1], padded[:, 2:], torch.ones(1, frames))).T


def autoencoder_figures(m: Measured, recordings: Path) -> dict[str, float]:
    """Errors of reconstructions beside those of the mean training spectrum, and how the codebook is used."""
    figures: dict[str, float] = {"codes": size_of(m)}
    sets = {"synthetic": (m.train, [each.power for each in m.held])}
    if (recordings / "valid.jsonl").is_file():
        train, valid = (read_utterances(recordings / f"{part}.jsonl", "jsonl") for part in ("train", "valid"))
        sets["recorded"] = (train, [m.read(each).power for each in valid])
    for name, (train, powers) in sets.items():
        mean = torch.cat([m.read(each).power for each in train[::25]], 1).mean(1, keepdim=True)
        own = [DECIBELS / 2 * (m.reconstructed(power) - power) for power in powers]
        baseline = [DECIBELS / 2 * (mean - power) for power in powers]
        figures[f"{name}_rms_error_db"] = math.sqrt(float(torch.cat(own, 1).square().mean()))
        figures[f"{name}_mean_spectrum_rms_error_db"] = math.sqrt(float(torch.cat(baseline, 1).square().mean()))
    use = codebook_use([each.codes for each in m.held], size_of(m))
    return figures | {"codes_used": use.used, "code_perplexity": use.perplexity}


def size_of(m: Measured) -> int:
    """Codes in the codebook."""
    return int(m.speaker.models.gpt.stop_mel) - 1


def language_figures(m: Measured) -> dict[str, float]:
    """Perplexity of held-out codes: of the autoregressive model, and of counts of training codes."""
    size = size_of(m)
    training = [m.codes(read_sound(each.path, CODE_RATE)) for each in m.train]
    single = torch.ones(size).double()
    pairs = torch.zeros(size, size).double()
    for codes in training:
        single += torch.bincount(codes, minlength=size)
        pairs.index_put_((codes[:-1], codes[1:]), torch.ones(len(codes) - 1).double(), accumulate=True)
    unigram = single / single.sum()
    # Witten-Bell: a code that was followed by many kinds leaves more to the unigram.
    kinds = (pairs > 0).sum(1, keepdim=True).clamp(min=1)
    bigram = (pairs + kinds * unigram) / (pairs.sum(1, keepdim=True) + kinds)
    bits: dict[str, list[Tensor]] = {name: [] for name in ("unigram", "bigram", "model", "other_text", "other_voice")}
    names = list(m.voices)
    for place, each in enumerate(m.held):
        codes, speaker = each.codes, each.utterance.speaker
        bits["unigram"].append(-unigram[codes[1:]].log())
        bits["bigram"].append(-bigram[codes[:-1], codes[1:]].log())
        other = m.held[(place + len(names)) % len(m.held)].utterance.text
        another = names[(names.index(speaker) + 1) % len(names)]
        for name, text, voice in (
            ("model", each.utterance.text, speaker),
            ("other_text", other, speaker),
            ("other_voice", each.utterance.text, another),
        ):
            bits[name].append(nats(m, text, voice, codes)[1:])
    return {name: float(torch.cat(found).mean().exp()) for name, found in bits.items()} | {
        "codes": sum(len(b) for b in bits["model"])
    }


def nats(m: Measured, text: str, voice: str, codes: Tensor) -> Tensor:
    """Of each code, given those before, the text and the voice: (L,)."""
    models = m.speaker.models
    tokens = torch.tensor([[*models.tokenizer.encode(text), 0]])
    lengths = torch.tensor([tokens.shape[1]]), torch.tensor([len(codes) * 1024])
    _, _, logits = models.gpt(m.voices[voice].speech, tokens, lengths[0], codes[None], lengths[1], clip_inputs=False)
    return F.cross_entropy(logits[0, :, : len(codes)].T.float(), codes, reduction="none").double()


def retrieval_figures(m: Measured, draws: int = 50) -> dict[str, float]:
    """How often CLVP finds the clip of a text, and the text of a clip, among some of all voices, and among those of one."""
    models = m.speaker.models
    texts = [models.clvp.text_latents(torch.tensor([[*models.tokenizer.encode(h.utterance.text), 0]]))[0] for h in m.held]
    clips = [models.clvp.speech_latents(h.codes[None])[0] for h in m.held]
    scores = F.normalize(torch.stack(texts), dim=-1) @ F.normalize(torch.stack(clips), dim=-1).T
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"clip_of_text": [], "text_of_clip": [], "clip_of_text_one_voice": []}
    by_voice = [[i for i, h in enumerate(m.held) if h.utterance.speaker == name] for name in m.voices]
    for draw in range(draws):
        some = torch.randperm(len(m.held), generator=generator)[:TOGETHER]
        part, right = scores[some][:, some], torch.arange(len(some))
        found["clip_of_text"].append(float((part.argmax(1) == right).double().mean()))
        found["text_of_clip"].append(float((part.argmax(0) == right).double().mean()))
        own = torch.tensor(by_voice[draw % len(by_voice)])
        own = own[torch.randperm(len(own), generator=generator)[:TOGETHER]]
        part = scores[own][:, own]
        found["clip_of_text_one_voice"].append(float((part.argmax(1) == torch.arange(len(own))).double().mean()))
    return {name: sum(rates) / len(rates) for name, rates in found.items()} | {"chance": 1 / TOGETHER}


def decoder_figures(m: Measured, clips: int) -> dict[str, float]:
    """Errors of spectrograms from true codes, of the decoder and of the autoencoder's own one."""
    models, found = m.speaker.models, {name: list[float]() for name in ("bridge", "autoencoder", "told", "diffusion", "mean")}
    mean = torch.cat([h.mel for h in (m.read(each) for each in m.train[::50])], 1).mean(1, keepdim=True)
    for place, each in enumerate(m.held[:clips]):
        frames = each.mel.shape[1]
        found["bridge"].append(m.error(m.across(each.power, frames), each.mel))
        found["autoencoder"].append(m.error(m.across(m.reconstructed(each.power), frames), each.mel))
        voice = m.voices[each.utterance.speaker].sound
        told = models.decoder.mel_head(models.decoder.timestep_independent(m.aligned(each), voice, frames))
        found["told"].append(m.error(denormalise_mel(told)[0], each.mel))
        found["diffusion"].append(m.error(m.decoded(each, frames, "dpmpp_2m", 20, place), each.mel))
        found["mean"].append(m.error(mean.expand_as(each.mel), each.mel))
    return {name: sum(errors) / len(errors) for name, errors in found.items()}


def sampler_figures(m: Measured, clips: int) -> list[dict[str, Any]]:
    """By sampler and steps: errors of the decoder's spectrograms, their changes over the true ones', and the work."""
    rows = []
    for sampler, steps in WAYS:
        begun = time.process_time()
        made = [m.decoded(h, h.mel.shape[1], sampler, steps, i) for i, h in enumerate(m.held[:clips])]
        spent = time.process_time() - begun
        errors = torch.tensor([m.error(one, h.mel) for one, h in zip(made, m.held, strict=False)])
        seconds = sum(len(h.sound) / CODE_RATE for h in m.held[:clips])
        change = [float(m.changes(one) / m.changes(h.mel)) for one, h in zip(made, m.held, strict=False)]
        row = {"sampler": sampler, "steps": steps, "error_db": float(errors.mean()), "change": sum(change) / len(change)}
        row |= {"real_time_factor": spent / seconds}
        rows.append(row)
        print(f"  {sampler:10}{steps:4}", *(f"{name} {row[name]:.3f}" for name in list(row)[2:]), flush=True)
    return rows


def ways_of_saying(m: Measured, settings: dict[str, Any]) -> dict[str, Callable[[int, Held], Tensor]]:
    """By name: the original, what more and more networks make of it, and what they say of its text alone."""

    def original(place: int, held: Held) -> Tensor:
        return resample(held.sound, CODE_RATE, SOUND_RATE)

    def vocoder(place: int, held: Held) -> Tensor:
        return m.sounded(held.mel)

    def autoencoder(place: int, held: Held) -> Tensor:
        return m.sounded(m.across(m.reconstructed(held.power), held.mel.shape[1]))

    def decoder(place: int, held: Held) -> Tensor:
        frames = frames_of(len(held.codes))
        return m.sounded(m.decoded(held, frames, settings["sampler"], settings["steps"], place))

    def spoken(place: int, held: Held, candidates: int = settings["candidates"]) -> Tensor:
        voice = m.voices[held.utterance.speaker]
        chosen = {**settings, "candidates": candidates}
        return torch.cat([piece.sound for piece in m.speaker.say(held.utterance.text, voice, seed=place, **chosen)])

    def without_decoder(place: int, held: Held) -> Tensor:
        voice = m.voices[held.utterance.speaker]
        pieces = m.speaker.say(held.utterance.text, voice, seed=place, **{**settings, "steps": 1})
        codes = torch.cat([piece.codes for piece in pieces])
        power = m.dvae.decode(codes[None])[0][0] * m.norms
        return m.sounded(m.across(power, frames_of(len(codes))))

    return {
        "original": original,
        "vocoder": vocoder,
        "autoencoder": autoencoder,
        "decoder": decoder,
        "spoken_without_decoder": without_decoder,
        "spoken_1": lambda place, held: spoken(place, held, 1),
        "spoken": spoken,
    }


def say_all(m: Measured, out: Path, settings: dict[str, Any], clips: int) -> list[str]:
    """Writes a folder of sounds and a list for each way of saying the first held-out sentences; gives the ways' names."""
    ways = ways_of_saying(m, settings)
    for name, way in ways.items():
        lines = []
        for place, held in enumerate(m.held[:clips]):
            sound = way(place, held)
            file = f"{held.utterance.speaker}-{held.utterance.path.stem}.wav"
            write_wav(out / name / file, sound, SOUND_RATE)
            lines.append(json.dumps({"file": file, "text": held.utterance.text, "speaker": held.utterance.speaker}) + "\n")
        (out / name / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return list(ways)


def said_figures(m: Measured, settings: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Says held-out sentences in each way, draws some, and has them recognised."""
    ways = say_all(m, given.out, settings, given.said)
    files = [f"{h.utterance.speaker}-{h.utterance.path.stem}.wav" for h in m.held[: min(3, given.said)]]
    picture(given.out, [way for way in ways if not way.startswith("spoken_")], files)
    figures: dict[str, Any] = {"settings": settings}
    if given.recogniser or given.encoder:
        texts = [held.utterance.text for held in m.held]
        figures |= {way: evaluated(given.out / way, given, texts) for way in ways}
    return figures


def evaluated(folder: Path, given: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """What `dlas evaluate speech` says of sounds, and how often what is heard is nearest to the right one of some texts."""
    command = [
        sys.executable,
        "-m",
        "dlas",
        "evaluate",
        "speech",
        str(folder / "manifest.jsonl"),
        "-o",
        str(folder / "figures"),
    ]
    command += ["--rate", "16000", "--reference", str(given.corpus / "valid.jsonl"), "--cleaner", "english"]
    for name in ("recogniser", "encoder"):
        command += [f"--{name}", getattr(given, name)] if getattr(given, name) else []
        for option in getattr(given, f"{name}_option"):
            command += [f"--{name}-option", option]
    subprocess.run(command, check=True)
    figures: dict[str, Any] = json.loads((folder / "figures/figures.json").read_text())
    if given.recogniser:
        with (folder / "figures/clips.csv").open(newline="", encoding="utf-8") as file:
            rows = [(row["text"], row["heard"]) for row in csv.DictReader(file)]
        right = [text == min(texts, key=lambda other: character_errors(other, heard).rate) for text, heard in rows]
        figures["sentences_found"] = sum(right) / len(right)
    return figures


def picture(out: Path, names: list[str], files: list[str]) -> None:
    """Spectrograms up to 8 kHz: a row for each way, a column for each file."""
    import cv2

    rows = []
    for name in names:
        row = []
        for file in files:
            shown = spectrogram_picture(resample(read_sound(out / name / file, SOUND_RATE), SOUND_RATE, 16000), 16000, 128)
            row.append(F.interpolate(shown[None], size=(128, 300), mode="area")[0])
        rows.append(torch.cat([F.pad(each, (0, 4, 0, 4), value=1.0) for each in row], 2))
    whole = (torch.cat(rows, 1) * 255).round().to(torch.uint8).movedim(0, 2).numpy()[:, :, ::-1]
    cv2.imwrite(str(out / "spoken.jpg"), whole, [cv2.IMWRITE_JPEG_QUALITY, 85])


def curve(rows: list[dict[str, Any]]) -> str:
    """Error over steps, as SVG."""
    width, height, left, bottom = 460, 280, 56, 40
    lowest, highest = (pick(row["error_db"] for row in rows) for pick in (min, max))
    low, high = lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest) + 1e-6

    def place(steps: int, error: float) -> tuple[float, float]:
        x = left + math.log(steps / 3) / math.log(200 / 3) * (width - left - 16)
        return x, 12 + (high - error) / (high - low) * (height - bottom - 12)

    colours = {"ancestral": "#b5483a", "ddim": "#3a78b5", "dpmpp_2m": "#3a9b5c"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    ]
    parts.append("<title>Error of the decoder's spectrogram by sampler and steps</title>")
    parts.append("<style>text{font:12px sans-serif;fill:#333}polyline{fill:none;stroke-width:2}.page{fill:#fff}</style>")
    parts.append(f'<rect class="page" width="{width}" height="{height}"/>')
    for steps in (3, 5, 10, 20, 50, 100, 200):
        x, _ = place(steps, low)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{height - bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{steps}</text>')
    for part in range(5):
        error = low + (high - low) * part / 4
        y = place(3, error)[1]
        parts.append(f'<line x1="{left}" x2="{width - 16}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{error:.2f}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">steps (error in dB)</text>')
    for index, (name, colour) in enumerate(colours.items()):
        points = [place(row["steps"], row["error_db"]) for row in rows if row["sampler"] == name]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" stroke="{colour}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{width - 100}" y="{28 + 16 * index}" style="fill:{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for figures, sounds and pictures")
    parser.add_argument("--models", type=Path, default=Path("models/small"), help="folder of train_all.py (models/small)")
    parser.add_argument("--corpus", type=Path, default=Path("datasets/commands"), help="of synthesise.py (datasets/commands)")
    parser.add_argument(
        "--recordings", type=Path, default=Path("datasets/asterisk"), help="of make_corpus.py, if they are there"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="what train_all.py was given")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all, by default; others' figures stay")
    parser.add_argument("--clips", type=int, default=144, help="held-out clips at most (144)")
    parser.add_argument("--said", type=int, default=48, help="of which so many are said, and recognised (48)")
    parser.add_argument("--sampled", type=int, default=24, help="and so many are decoded by each sampler (24)")
    for name in ("recogniser", "encoder"):
        parser.add_argument(f"--{name}", metavar="FILE.py", help="as of `dlas evaluate speech`")
        parser.add_argument(f"--{name}-option", action="append", default=[], metavar="KEY=VALUE")
    numbers: dict[str, tuple[type, Any]] = {"candidates": (int, 16), "temperature": (float, 0.7), "top_p": (float, 0.8)}
    numbers |= {"repetition_penalty": (float, 1.0), "steps": (int, 3), "guidance": (float, 0.0), "max_codes": (int, 110)}
    for name, (kind, value) in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"of speaking ({value})")
    parser.add_argument("--sampler", default="ddim", help="of speaking (ddim)")
    given = parser.parse_args(arguments)
    settings = {name: getattr(given, name) for name in [*numbers, "sampler"]}
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "figures.json"
    figures: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    with torch.inference_mode():
        m = Measured(given.models, given.corpus, given.set, given.clips)
        parts: dict[str, Callable[[], Any]] = {
            "autoencoder": lambda: autoencoder_figures(m, given.recordings),
            "codes": lambda: language_figures(m),
            "clvp": lambda: retrieval_figures(m),
            "decoder": lambda: decoder_figures(m, given.said),
            "samplers": lambda: sampler_figures(m, given.sampled),
            "said": lambda: said_figures(m, settings, given),
        }
        for part in given.parts:
            figures |= {"clips": len(m.held), part: parts[part]()}
            print(part, json.dumps(figures[part]), flush=True)
            file.write_text(json.dumps(figures, indent=1) + "\n")
    if "samplers" in given.parts:
        (given.out / "samplers.svg").write_text(curve(figures["samplers"]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
