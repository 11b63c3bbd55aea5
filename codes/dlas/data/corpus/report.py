"""What a corpus holds and what was left out, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from dlas.data.corpus.recording import Outcome


@dataclass
class Amount:
    """Clips and their length."""

    clips: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Adds a clip."""
        self.clips += 1
        self.seconds += seconds

    def text(self) -> str:
        """In words."""
        hours = self.seconds / 3600
        return f"{self.clips} clips, {f'{hours:.2f} h' if hours >= 1 else f'{self.seconds / 60:.2f} min'}"

    def plain(self) -> dict[str, float]:
        """For JSON."""
        return {"clips": self.clips, "seconds": round(self.seconds, 2)}


@dataclass
class Report:
    """What there is.

    Args:
        states: number of recordings by what became of them.
        faults: why recordings could not be read, each with its name.
        seconds: length of the recordings.
        silent: recordings with nothing but silence.
        speakers: what is kept of each.
        reasons: what was rejected, by reason; a part with two reasons counts for both.
        rejected: every part that was rejected.
    """

    states: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    silent: list[str] = field(default_factory=list)
    speakers: dict[str, Amount] = field(default_factory=dict)
    reasons: dict[str, Amount] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def add(self, outcome: Outcome, source: str) -> None:
        """Counts a recording and what of it was rejected."""
        self.states[outcome.state] = self.states.get(outcome.state, 0) + 1
        if outcome.record is None:
            self.faults.append(outcome.fault)
            return
        details = outcome.record.details
        self.seconds += details["seconds"]
        if not details["parts"]:
            self.silent.append(source)
        for part in details["parts"]:
            if "rejected" in part:
                self.reject(source, part)

    def reject(self, source: str, part: dict[str, Any]) -> None:
        """Counts a part that was rejected."""
        self.rejected.append({"source": source, **part})
        for reason in part["rejected"]:
            self.reasons.setdefault(reason, Amount()).add(part["end"] - part["start"])

    def keep(self, speaker: str, seconds: float) -> None:
        """Counts a clip that is kept."""
        self.speakers.setdefault(speaker, Amount()).add(seconds)

    @property
    def kept(self) -> Amount:
        """All that is kept."""
        return Amount(sum(each.clips for each in self.speakers.values()), sum(each.seconds for each in self.speakers.values()))

    def json(self) -> bytes:
        """The file; it says nothing of when and how quickly it was made."""
        tree = {
            "recordings": {"count": sum(self.states.values()), "seconds": round(self.seconds, 2)},
            "damaged": self.faults,
            "without_speech": self.silent,
            "kept": self.kept.plain(),
            "speakers": {name: self.speakers[name].plain() for name in sorted(self.speakers)},
            "rejected": {name: self.reasons[name].plain() for name in sorted(self.reasons)},
        }
        return json.dumps(tree, indent=1, ensure_ascii=False).encode() + b"\n"

    def text(self, seconds: float, workers: int) -> str:
        """Some lines for the terminal."""
        names = (("made", "cut now"), ("there", "there already"), ("damaged", "damaged"))
        states = ", ".join(f"{self.states[key]} {words}" for key, words in names if key in self.states)
        recordings = Amount(sum(self.states.values()), self.seconds).text().replace("clips", "recordings")
        lines = [f"{recordings}: {states}", f"{self.kept.text()} kept, of {len(self.speakers)} speakers"]
        lines += [f"  rejected as {name}: {amount.text()}" for name, amount in sorted(self.reasons.items())]
        if self.silent:
            lines.append(f"  {len(self.silent)} recordings without speech")
        if self.faults:
            lines.append(f"{len(self.faults)} files cannot be used:")
            lines += [f"  {fault}" for fault in self.faults]
        rate = f", {self.seconds / seconds:.0f} times real time" if self.states.get("made") and seconds > 0 else ""
        lines.append(f"{seconds:.1f} s with {workers} workers{rate}")
        return "\n".join(lines)
