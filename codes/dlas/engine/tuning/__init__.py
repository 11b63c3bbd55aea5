"""Finding the settings that train a file fastest without changing what it computes: by measuring them in turn."""

from dlas.engine.tuning.search import Plan, tune

__all__ = ["Plan", "tune"]
