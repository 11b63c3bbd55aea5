"""`python -m dlas`."""

from dlas.cli.main import entry_point

entry_point()
