"""Tone bursts in place of speech, whose every boundary, voice and fault is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 22050
PAUSE = 0.9  # seconds between utterances


class Voice:
    """Syllables of harmonics under formants, with a hiss at some onsets."""

    def __init__(self, pitch: float, formants: tuple[float, float, float], seed: int) -> None:
        self.pitch, self.formants = pitch, formants
        self.random = np.random.default_rng(seed)

    def syllable(self) -> np.ndarray:
        length = int(RATE * self.random.uniform(0.12, 0.25))
        time = np.arange(length) / RATE
        phase = 2 * np.pi * np.cumsum(self.pitch * self.random.uniform(0.9, 1.1) * (1 + 0.05 * np.sin(9 * time))) / RATE
        centres = np.array(self.formants) * self.random.uniform(0.93, 1.07, 3)
        sound = np.zeros(length)
        for harmonic in range(1, int(RATE / 2 / (1.2 * self.pitch))):
            frequency = harmonic * self.pitch
            strength = (np.exp(-(((frequency - centres) / 180) ** 2)) * (1, 0.5, 0.3)).sum() + 0.02 / harmonic
            sound += strength * np.sin(harmonic * phase + harmonic)
        sound += 0.06 * self.random.standard_normal(length) * np.exp(-time / 0.03)
        return sound * np.hanning(length) ** 0.5

    def utterance(self, seconds: float) -> np.ndarray:
        """Syllables with short gaps; it begins and ends with one."""
        parts = [self.syllable()]
        while sum(map(len, parts)) < seconds * RATE:
            parts += [np.zeros(int(RATE * self.random.uniform(0.05, 0.12))), self.syllable()]
        return np.concatenate(parts)


SPEAKERS = {
    "low": (95.0, (420.0, 1100.0, 2300.0)),
    "middle": (140.0, (600.0, 1700.0, 2600.0)),
    "high": (215.0, (760.0, 2050.0, 3300.0)),
}


def voice(name: str, seed: int) -> Voice:
    return Voice(*SPEAKERS[name], seed)


def to_level(sound: np.ndarray, decibels: float) -> np.ndarray:
    return sound * 10 ** (decibels / 20) / np.sqrt(np.mean(sound**2))


def recording(
    voices: list[Voice], count: int, seed: int, seconds: tuple[float, float] = (1.6, 2.6)
) -> tuple[np.ndarray, list[tuple[float, float]], list[int]]:
    """Utterances with pauses around, on a floor of -75 dB; where each begins and ends in seconds, and whose it is."""
    random = np.random.default_rng(seed)
    parts, places, whose, now = [], [], [], 0
    for number in range(count):
        silence = np.zeros(int(RATE * random.uniform(PAUSE, 1.5)))
        who = number % len(voices)
        said = to_level(voices[who].utterance(random.uniform(*seconds)), -20)
        now += len(silence)
        places.append((now / RATE, (now + len(said)) / RATE))
        now += len(said)
        parts += [silence, said]
        whose.append(who)
    sound = np.concatenate([*parts, np.zeros(int(RATE * PAUSE))])
    return sound + 10 ** (-75 / 20) * random.standard_normal(len(sound)), places, whose


def noisy(sound: np.ndarray) -> np.ndarray:
    """Quiet speech over noise that is just below what counts as silent."""
    random = np.random.default_rng(1)
    return to_level(sound, -32) + 10 ** (-42 / 20) * random.standard_normal(len(sound))


def muffled(sound: np.ndarray) -> np.ndarray:
    """Nothing above 4 kHz, as what was sampled at 8 kHz."""
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / RATE) > 4000] = 0
    return np.fft.irfft(spectrum, len(sound))


def clipped(sound: np.ndarray) -> np.ndarray:
    """Cut off at a third of the peak, and then made quieter."""
    peak = np.abs(sound).max() / 3
    return 0.7 * np.clip(sound, -peak, peak)


def quiet(sound: np.ndarray) -> np.ndarray:
    return sound * 10 ** (-17 / 20)


DIRT = {"noisy": noisy, "band-limited": muffled, "clipped": clipped, "too quiet": quiet}
"""What is done to sound, by the reason for which it is rejected."""


def write(path: Path, sound: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype="PCM_16")
