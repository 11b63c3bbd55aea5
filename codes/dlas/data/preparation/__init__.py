"""Pictures made ready for training ahead of it: tiles, low-quality partners, lists, databases and warm caches."""

from dlas.data.preparation.folder import Preparation, claim, list_of, make_database, pictures_of
from dlas.data.preparation.plan import Plan
from dlas.data.preparation.report import Report
from dlas.data.preparation.warming import NamedKept, Warmed, warm

__all__ = ["NamedKept", "Plan", "Preparation", "Report", "Warmed", "claim", "list_of", "make_database", "pictures_of", "warm"]
