"""What a call did, in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlas.data.preparation.picture import Outcome
from dlas.data.preparation.plan import Plan
from dlas.data.preparation.records import Record
from dlas.data.preparation.warming import Warmed


@dataclass
class Report:
    """What a call did.

    Args:
        made: records of all pictures that there are results of, in their order.
        states: number of pictures by what became of them.
        faults: why files could not be used, each with its name.
        spoiled: results of earlier calls, and images of the cache, that were damaged and are made again.
        bytes_made: written by this call.
        files: lists and databases that were written.
        caches: those that were filled.
    """

    made: list[Record] = field(default_factory=list)
    states: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    spoiled: list[str] = field(default_factory=list)
    bytes_made: int = 0
    files: list[str] = field(default_factory=list)
    caches: list[Warmed] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Counts a picture."""
        self.states[outcome.state] = self.states.get(outcome.state, 0) + 1
        self.spoiled += outcome.spoiled
        if outcome.record is None:
            self.faults.append(outcome.fault)
            return
        self.made.append(outcome.record)
        if outcome.state == "made":
            self.bytes_made += sum(file.size for file in outcome.record.files)

    def add_cache(self, warmed: Warmed) -> None:
        """Counts a cache."""
        self.caches.append(warmed)
        self.faults += [fault for fault in warmed.faults if fault not in self.faults]
        self.spoiled += warmed.spoiled

    def is_of_use(self) -> bool:
        """Whether there is anything to train on."""
        return bool(self.made) or any(cache.made + cache.there for cache in self.caches)

    def text(self, plan: Plan, seconds: float, workers: int) -> str:
        """Some lines for the terminal."""
        lines = [] if not self.states else self._of_pictures(plan)
        lines += [f"wrote {name}" for name in self.files]
        lines += [
            f"cache {cache.folder}: {cache.made} images added ({cache.bytes_made / 1e9:.3f} GB), {cache.there} were there"
            + (f", {cache.left_out} not kept for want of room" if cache.left_out else "")
            for cache in self.caches
        ]
        if self.spoiled:
            lines.append(f"{len(self.spoiled)} files were missing or spoiled and have been made again:")
            lines += [f"  {name}" for name in self.spoiled]
        if self.faults:
            lines.append(f"{len(self.faults)} files cannot be used:")
            lines += [f"  {fault}" for fault in self.faults]
        worked = self.states.get("made", 0) or sum(cache.made for cache in self.caches)
        rate = f", {worked / seconds:.1f} a second" if worked and seconds > 0 else ""
        lines.append(f"{seconds:.1f} s with {workers} workers{rate}")
        return "\n".join(lines)

    def _of_pictures(self, plan: Plan) -> list[str]:
        total = sum(self.states.values())
        parts = [f"{self.states.get('made', 0)} prepared now", f"{self.states.get('there', 0)} there already"]
        parts += [f"{self.states[state]} {state}" for state in ("too small", "damaged") if state in self.states]
        hq = sum(len(record.pictures(plan.hq_folder)) for record in self.made)
        flat = sum(record.flat for record in self.made)
        size = sum(file.size for record in self.made for file in record.files)
        files = sum(len(record.files) for record in self.made)
        what = "tiles" if plan.tile_size is not None else "pictures"
        return [
            f"{total} pictures: {', '.join(parts)}",
            f"{hq} {what} in {plan.hq_folder}; {flat} left out as flat"
            + (f" (detail below {plan.min_detail:g})" if plan.min_detail else ""),
            f"{files} files, {size / 1e6:.1f} MB; {self.bytes_made / 1e6:.1f} MB of them written now",
        ]
