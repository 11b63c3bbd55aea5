"""When something is on: `after`, `before`, `every`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """Open at steps s (number of completed iterations) with after <= s < before and s divisible by every."""

    after: int = 0
    before: int | None = None
    every: int = 1

    def opens(self, niter: int) -> bool:
        """Whether it is open at any of the steps 0 to niter - 1."""
        first = -(-self.after // self.every) * self.every
        return first < niter and (self.before is None or first < self.before)

    def __call__(self, step: int) -> bool:
        return step >= self.after and (self.before is None or step < self.before) and step % self.every == 0
