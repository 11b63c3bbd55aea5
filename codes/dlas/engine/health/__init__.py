"""Health of a run: updates that are not finite, or spike, are found and held back on the device; policies say what follows."""

from dlas.engine.health.guard import UpdateGuard
from dlas.engine.health.monitor import BadUpdate, HealthMonitor
from dlas.engine.health.policy import Decision

__all__ = ["BadUpdate", "Decision", "HealthMonitor", "UpdateGuard"]
