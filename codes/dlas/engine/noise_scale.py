"""How noisy the gradient is, and so what a larger or smaller batch would be good for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config.schema import NoiseScaleConfig
from dlas.engine.distributed import Ranks
from dlas.engine.distributed.tensors import whole
from dlas.engine.microbatch import MicroBatch


class NoiseScale:
    """The simple noise scale of the gradient of each network that a step trains.

    With G the true gradient, Sigma the covariance of the gradients of single samples and G_n the mean over n samples,
    ``E|G_n|^2 = |G|^2 + tr(Sigma) / n``. Two sizes, b < B, give estimates of both terms:

        |G|^2     ~ (B |G_B|^2 - b |G_b|^2) / (B - b)
        tr(Sigma) ~ (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)

    Each is averaged over measurements, and only then divided: ``noise scale = tr(Sigma) / |G|^2``, in samples. It is an
    estimate of the critical batch size, at which a training takes twice the least number of updates and twice the least number
    of samples: with batch B it takes (1 + noise scale / B) times the least updates and (1 + B / noise scale) times the least
    samples. B is the batch, b the first micro-batch of each process. Gradients are taken before clipping; nothing waits for
    the device but `figures`.

    Samples must be independent of each other. A loss that looks at all samples at once (contrastive), batch normalisation and
    stratified timesteps break that. For optimisers other than SGD the number is a guide, not a law.

    Args:
        config: the section `train.noise_scale`.
        step: name of the step.
        networks: parameters that the step trains, by network.
        ranks: the processes.
        device: where the parameters are.
        together: gradients are cut up among the processes; they have exchanged them by then, and b counts the samples of all.

    Source: McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, equations 2.8, 2.9 and appendix
    A.1.
    """

    def __init__(
        self,
        config: NoiseScaleConfig,
        step: str,
        networks: Mapping[str, Iterable[nn.Parameter]],
        ranks: Ranks,
        device: torch.device,
        together: bool = False,
    ) -> None:
        self.together = together
        self.config = config
        self.step = step
        self.networks = {name: list(parameters) for name, parameters in networks.items()}
        self.ranks = ranks
        self.batch = 0
        self._sums = torch.zeros(2, len(self.networks), device=device)  # decayed sums of |G|^2 and of tr(Sigma)
        self._small: Tensor | None = None

    def due(self, iteration: int, parts: list[MicroBatch]) -> bool:
        """Whether there is something to measure in this iteration: it is time, and there are two sizes of batches."""
        return iteration % self.config.every == 0 and (len(parts) > 1 or (self.ranks.many and not self.together))

    def after_first(self) -> None:
        """To be called when gradients are those of the first micro-batch, before processes exchange them."""
        self._small = self._squares()

    def after_last(self, parts: list[MicroBatch], scale: Tensor | None) -> None:
        """To be called when gradients are those of the whole batch, before they are clipped.

        Args:
            parts: the micro-batches.
            scale: the factor on losses that keeps gradients in range in float16.
        """
        assert self._small is not None
        self.batch = sum(len(part.positions) for part in parts) * self.ranks.world_size
        few, many = len(parts[0].positions) * (self.ranks.world_size if self.together else 1), self.batch
        small, large = self.ranks.mean_(self._small / parts[0].share ** 2), self._squares()
        self._small = None
        if scale is not None:
            small, large = small / scale**2, large / scale**2
        signal = (many * large - few * small) / (many - few)
        noise = (small - large) / (1 / few - 1 / many)
        found = torch.stack([signal, noise])
        # A gradient that is not finite must not be remembered.
        self._sums = torch.where(found.isfinite().all(dim=0), self.config.decay * self._sums + found, self._sums)

    def _squares(self) -> Tensor:
        """The squared norm of each network's gradient."""
        norms = []
        for parameters in self.networks.values():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norm = whole(nn.utils.get_total_norm(gradients)) if gradients else torch.zeros(())
            norms.append(norm.to(self._sums.device).float())
        return torch.stack(norms).square()

    def noise_scales(self) -> dict[str, float]:
        """The noise scale by network, in samples, where it can be told; waits for the device."""
        signals, noises = self._sums.tolist()
        return {
            name: noise / signal
            for name, signal, noise in zip(self.networks, signals, noises, strict=True)
            if signal > 0 and noise > 0
        }

    def figures(self) -> dict[str, float]:
        """For a log line: the noise scale, and updates and samples over the least that a training could do with."""
        values = {}
        for name, scale in self.noise_scales().items():
            head = f"{self.step}/{name}"
            values[f"{head}_noise_scale"] = scale
            values[f"{head}_updates_factor"] = 1 + scale / self.batch
            values[f"{head}_samples_factor"] = 1 + self.batch / scale
        return values

    def summary(self) -> list[str]:
        """A line for each network: what other batches would come to."""
        return [f"{self.step}/{name}: {trade_off(scale, self.batch)}" for name, scale in self.noise_scales().items()]

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs."""
        return {"networks": list(self.networks), "sums": self._sums, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`, if it is of the same networks."""
        if state["networks"] == list(self.networks):
            self._sums = state["sums"].to(self._sums.device)
            self.batch = state["batch"]


def trade_off(scale: float, batch: int) -> str:
    """In words, what batches of other sizes would cost, by a noise scale."""
    cases = []
    for size in (max(batch // 2, 1), 2 * batch, 4 * batch):
        updates = (1 + scale / size) / (1 + scale / batch)
        samples = (1 + size / scale) / (1 + batch / scale)
        cases.append(f"batch {size}: {updates:.2f} x the updates, {samples:.2f} x the samples")
    digits = max(0, 1 - math.floor(math.log10(scale)))
    return f"noise scale (critical batch) about {scale:.{digits}f} samples; against batch {batch}, " + "; ".join(cases)
