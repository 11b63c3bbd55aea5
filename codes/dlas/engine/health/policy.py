"""What follows a bad update: its policy, within limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from dlas.config.schema import HealthConfig

Kind = Literal["loss", "gradient", "spike"]
WORDS: dict[Kind, str] = {
    "loss": "the loss is not finite",
    "gradient": "the loss is finite, but its gradient is not",
    "spike": "a spike",
}
DONE = {"skip": "skipped", "reduce_lr": "skipped", "rollback": "the run goes back", "stop": "the run ends"}


@dataclass(frozen=True)
class Decision:
    """What the run does now.

    Args:
        action: skip and reduce_lr go on with the next batch.
        why: in words, with the limit if one was reached.
        weights_good: false: the weights are not finite themselves, so they cannot be saved.
    """

    action: Literal["skip", "reduce_lr", "rollback", "stop"]
    why: str
    weights_good: bool = True


@dataclass
class StepHealth:
    """What a step has been through; in the checkpoint.

    Args:
        consecutive: bad updates in a row.
        spiked: the last of them was a spike.
        reductions: of the learning rate.
        lr_factor: their product, on top of the schedule.
        total: bad updates of the whole run.
        skipped: updates not made since the last log line, those held because of another one included.
    """

    consecutive: int = 0
    spiked: bool = False
    reductions: int = 0
    lr_factor: float = 1.0
    total: int = 0
    skipped: int = 0

    def state_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def updated(self) -> None:
        """A good update was made."""
        self.consecutive = 0
        self.spiked = False

    def decide(self, kind: Kind, settings: HealthConfig, spoilt: list[str], rollbacks: int) -> Decision:
        """Counts a bad update and decides.

        Args:
            kind: of it.
            settings: of the step.
            spoilt: networks whose weights are not finite.
            rollbacks: of the run so far.
        """
        weights_good = not spoilt
        follows_spike = self.spiked
        self.consecutive += 1
        self.total += 1
        self.spiked = kind == "spike"
        policy = settings.spike if kind == "spike" else settings.non_finite
        assert policy != "off"  # then there is no score
        if policy == "stop":
            return Decision("stop", "the policy is to stop", weights_good)
        if policy == "rollback":
            if rollbacks >= settings.max_rollbacks:
                return Decision("stop", f"it was rolled back {rollbacks} times already (max_rollbacks)", weights_good)
            return Decision("rollback", f"rollback {rollbacks + 1} of at most {settings.max_rollbacks}")
        if not weights_good:
            why = f"the weights of {', '.join(spoilt)} are not finite themselves, so skipping updates cannot help"
            return Decision("stop", why, False)
        # Spikes in a row end by themselves, when they have become the normal level; nothing else does.
        if kind != "spike" and self.consecutive > settings.max_consecutive:
            return Decision("stop", f"{self.consecutive} bad updates in a row (max_consecutive {settings.max_consecutive})")
        if policy == "skip" or (kind == "spike" and follows_spike):
            return Decision("skip", f"{self.consecutive} in a row")
        if self.reductions == settings.max_reductions:
            return Decision("stop", f"the learning rate was reduced {self.reductions} times already (max_reductions)")
        self.reductions += 1
        self.lr_factor *= settings.lr_factor
        return Decision("reduce_lr", f"learning rate from now on times {self.lr_factor:g}")
