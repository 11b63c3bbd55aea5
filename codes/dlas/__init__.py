"""dlas: a config-driven trainer for generative models."""

__version__ = "0.1.0"
