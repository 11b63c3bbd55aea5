"""Families of fixtures whose network or function the project does not have yet. An entry goes when its family is built."""

from __future__ import annotations

NOT_BUILT_YET: dict[str, str] = {}
