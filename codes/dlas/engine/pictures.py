"""Pictures of state keys as evaluation shows and measures them."""

from __future__ import annotations

from torch import Tensor

from dlas.config.schema import EvalConfig


def to_unit(section: EvalConfig, key: str, picture: Tensor) -> Tensor:
    """The picture in [0, 1]: mapped from [-1, 1] where `eval.reverse_n1_to_1` says that the key's are."""
    chosen = section.reverse_n1_to_1
    return (picture + 1) / 2 if chosen is True or (isinstance(chosen, list) and key in chosen) else picture
