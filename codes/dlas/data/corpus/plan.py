"""What is made of each recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlas.errors import ConfigurationError


@dataclass(frozen=True)
class SpeechPlan:
    """Decides, with the recordings, about every clip that is written.

    Args:
        rate: of the clips, in Hz.
        format: of their files, of 16 bits.
        silence_below: frames less loud than this, in decibels under full scale, are silent.
        min_silence: seconds of silence at which a recording is cut.
        keep_silence: seconds of it that stay at both ends of a clip.
        min_seconds: length of the shortest clip.
        max_seconds: that of the longest.
        min_loudness: least root mean square of a clip, in decibels under full scale.
        max_clipped: largest share of samples at the clip's peak, where many lie if it was cut off.
        min_bandwidth: least frequency up to which there must be sound, in Hz; 0 asks for none.
        min_snr: least ratio of speech to what is between words, in decibels.
        classifier: run folder or file of a network that tells kinds of sound; empty: none.
        classifier_weights: checksum of its weights.
        keep_label: the kind that is kept, as the network numbers them.

    Raises:
        ConfigurationError: the options contradict one another.
    """

    rate: int = 22050
    format: Literal["flac", "wav"] = "flac"
    silence_below: float = -40.0
    min_silence: float = 0.6
    keep_silence: float = 0.05
    min_seconds: float = 4.0
    max_seconds: float = 20.0
    min_loudness: float = -35.0
    max_clipped: float = 0.001
    min_bandwidth: float = 7700.0
    min_snr: float = 20.0
    classifier: str = ""
    classifier_weights: int = 0
    keep_label: int = 0

    def __post_init__(self) -> None:
        if self.min_seconds >= self.max_seconds:
            raise ConfigurationError(
                f"clips of at least {self.min_seconds:g} s and at most {self.max_seconds:g} s: there are none; "
                "--min-seconds must be less than --max-seconds"
            )
        if 2 * self.keep_silence > self.min_silence:
            raise ConfigurationError(
                f"of silences of {self.min_silence:g} s, {self.keep_silence:g} s cannot be kept on both sides without overlap; "
                "--keep-silence is at most half of --min-silence"
            )
        if self.min_bandwidth > self.rate / 2:
            raise ConfigurationError(
                f"clips of {self.rate} Hz hold nothing above {self.rate / 2:g} Hz, and --min-bandwidth is "
                f"{self.min_bandwidth:g}; lower it to {0.7 * self.rate / 2:g}, say"
            )
