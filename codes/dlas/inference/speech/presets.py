"""How a text is spoken: settings, and sets of them by name."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from dlas.errors import ConfigurationError
from dlas.layers.token_sampling import TokenSampling
from dlas.registry import nearest

SAMPLERS = ("ancestral", "ddim", "dpmpp_2m")


@dataclass(frozen=True)
class Settings:
    """Everything by which the same text of the same voice sounds different; the defaults are TorToiSe's.

    Args:
        candidates: how often a text is said in codes; the one that fits it best is heard.
        batch: candidates at a time, as memory allows; which codes they are does not depend on it.
        temperature: of codes; 0: the most likely one, always.
        top_p: codes are drawn from the most likely ones that have this probability together; 1: off.
        top_k: and from so many; 0: off.
        repetition_penalty: on codes that occurred; 1: none.
        typical_mass: see `dlas.layers.token_sampling.keep_typical`; 1: off.
        max_codes: longest utterance; 21.5 codes are a second of the published networks. By default 500, or what networks can.
        voice_share: which part of the ranking is how well a candidate fits the voice, from 0 to 1; over 0 needs CVVP.
        sampler: ancestral, ddim or dpmpp_2m (DPM-Solver++ 2M), the latter two are meant for fewer steps.
        steps: of the decoder by diffusion.
        guidance: k in (1 + k) good - k bad, growing from 0 at the noisiest; 0 halves the decoder's work.
        start_noise: standard deviation of the noise that the decoder starts from.
        longest_text: letters that are said at once; longer sentences are cut at commas.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    candidates: int = 96
    batch: int = 16
    temperature: float = 0.8
    top_p: float = 0.8
    top_k: int = 50
    repetition_penalty: float = 2.0
    typical_mass: float = 1.0
    max_codes: int = 500
    voice_share: float = 0.0
    sampler: str = "ancestral"
    steps: int = 80
    guidance: float = 2.0
    start_noise: float = 1.0
    longest_text: int = 300

    def __post_init__(self) -> None:
        for name in ("candidates", "batch", "max_codes", "steps", "longest_text"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("guidance", "start_noise", "top_k"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.voice_share <= 1:
            raise ConfigurationError(f"voice_share is from 0 to 1, got {self.voice_share}")
        if self.sampler not in SAMPLERS:
            raise ConfigurationError(f"sampler is one of {', '.join(SAMPLERS)}; got '{self.sampler}'")
        try:
            self.sampling()
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def sampling(self) -> TokenSampling:
        """How codes are drawn."""
        return TokenSampling(
            repetition_penalty=self.repetition_penalty,
            typical_mass=self.typical_mass,
            temperature=self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p,
        )


PRESETS = {
    "ultra_fast": Settings(candidates=16, steps=30, guidance=0.0),
    "fast": Settings(candidates=96, steps=80),
    "standard": Settings(candidates=256, steps=200),
    "high_quality": Settings(candidates=256, steps=400),
}
"""As tortoise-tts has them."""


def settings_of(preset: str, **changes: Any) -> Settings:
    """A preset, with some settings changed; those that are None stay.

    Raises:
        ConfigurationError: the preset or a setting does not exist, or a number is out of its range.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"there is no preset '{preset}'; presets: {', '.join(PRESETS)}")
    known = [field.name for field in fields(Settings)]
    for name in changes:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean '{close}'?" if close else f"settings: {', '.join(known)}"
            raise ConfigurationError(f"there is no setting '{name}': {hint}")
    return replace(PRESETS[preset], **{name: value for name, value in changes.items() if value is not None})
