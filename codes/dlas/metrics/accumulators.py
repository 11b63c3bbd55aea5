"""What is kept of the feature vectors of a set of pictures: sums of them, or all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlas.ranks import add_up, gather, largest


class Moments:
    """Mean and covariance of vectors that arrive in pieces, in float64.

    Args:
        size: D; None: that of the first vectors.
        device: where the sums live.
    """

    def __init__(self, size: int | None, device: torch.device) -> None:
        self.device = device
        self.count = 0
        self.sum = torch.zeros(0, dtype=torch.float64, device=device)
        self.products = torch.zeros(0, 0, dtype=torch.float64, device=device)
        if size is not None:
            self._make_room(size)

    def _make_room(self, size: int) -> None:
        if len(self.sum) == 0 and size:
            self.sum = self.sum.new_zeros(size)
            self.products = self.products.new_zeros(size, size)
        elif size and len(self.sum) != size:
            raise ValueError(f"vectors of {size} numbers among ones of {len(self.sum)}: pictures must all have one size here")

    def update(self, features: Tensor, places: Sequence[int] = ()) -> None:
        """Adds vectors, (N, D); sums do not need their places."""
        del places
        features = features.double()
        self._make_room(features.shape[1])
        self.count += len(features)
        self.sum += features.sum(0)
        self.products.addmm_(features.mT, features)

    def merge(self, other: Moments) -> None:
        """Adds what `other` has seen."""
        self._make_room(len(other.sum))
        if len(other.sum):
            self.count += other.count
            self.sum += other.sum.to(self.sum.device)
            self.products += other.products.to(self.sum.device)

    def synchronize(self) -> None:
        """Adds what the other processes have seen."""
        self._make_room(largest(len(self.sum), self.device))
        count = torch.tensor(self.count, device=self.device)
        add_up(count, self.sum, self.products)
        self.count = int(count)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean, and covariance with N - 1 below."""
        mean = self.sum / self.count
        return mean, (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)


class Rows:
    """All vectors, whatever the order they come in.

    Args:
        device: where they live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = 0
        self._pieces: list[Tensor] = []
        self._places: list[int] = []

    def update(self, features: Tensor, places: Sequence[int] = ()) -> None:
        """Adds vectors, (N, D).

        Args:
            features: the vectors.
            places: of pictures in their set, each with N / len(places) vectors that follow one another; in the order of arrival
                if not given.
        """
        share = len(features) // len(places) if places else 1
        numbers = places or range(self.count, self.count + len(features))
        self._places += [place for place in numbers for _ in range(share)]
        self._pieces.append(features)
        self.count += len(features)

    def merge(self, other: Rows) -> None:
        """Adds what `other` has seen."""
        self._pieces += [piece.to(self.device) for piece in other._pieces]
        self._places += other._places
        self.count += other.count

    def synchronize(self) -> None:
        """Adds what the other processes have seen."""
        size = largest(self._pieces[0].shape[1] if self._pieces else 0, self.device)
        rows = torch.cat(self._pieces).float() if self._pieces else torch.zeros(0, size, device=self.device)
        places = torch.tensor(self._places, dtype=torch.long, device=self.device)
        self._pieces, self._places = [gather(rows)], gather(places).tolist()
        self.count = len(self._places)

    def compute(self) -> Tensor:
        """(N, D) in the order of their places; no rows of width 0 if there were none."""
        if not self._pieces:
            return torch.zeros(0, 0, device=self.device)
        order = torch.argsort(torch.tensor(self._places), stable=True)
        return torch.cat(self._pieces)[order.to(self.device)]
