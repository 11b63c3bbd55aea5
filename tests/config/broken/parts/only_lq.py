"""A data set without true pictures, for files that name this plug-in. It is never imported."""

from dlas.data.base import Dataset
from dlas.registry import DATASETS


@DATASETS.register("corpus_only_lq")
class OnlyLq(Dataset):
    """Pictures to enlarge.

    Args:
        phase: not looked at.
    """

    provides = ("lq", "name")

    def __init__(self, phase: str, /) -> None:
        self.phase = phase
