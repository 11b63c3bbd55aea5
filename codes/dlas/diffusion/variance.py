"""Steps back between neighbouring noise levels: posteriors, and the variances of a model's own steps."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dlas.diffusion.levels import Level, over
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.tables import Table

Variance: TypeAlias = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
"""The variance of a model's step back.

=============  ======================================================================================
name           variance
=============  ======================================================================================
fixed_small    of the posterior (right if the data are a single point)
fixed_large    beta (right if the data are standard normal)
learned        exp(v), v the second half of the network's channels
learned_range  between the two, on the scale of logarithms: v = -1 is the small one, 1 the large one
=============  ======================================================================================

Source: Ho et al. 2020 (arXiv:2006.11239), section 3.2; Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 15.
"""


class Posterior(NamedTuple):
    """q(x_lower | x, x0): normal with mean `x0_factor` x0 + `x_factor` x.

    Attributes:
        x0_factor: of the data.
        x_factor: of the noisier sample.
        variance: of the less noisy sample.
        forward_variance: of the noise that is added on the way up (beta, for neighbouring timesteps).
    """

    x0_factor: Tensor
    x_factor: Tensor
    variance: Tensor
    forward_variance: Tensor

    def mean(self, x0: Tensor, x: Tensor) -> Tensor:
        """Mean of the less noisy sample, (B, ...)."""
        return self.x0_factor * x0 + self.x_factor * x

    def x0_of(self, lower: Tensor, x: Tensor) -> Tensor:
        """The data for which the mean is `lower`."""
        return (lower - self.x_factor * x) / self.x0_factor


def posterior(level: Level, lower: Level) -> Posterior:
    """Of samples at `lower`, given the data and a noisier sample at `level` (sigma > 0); `lower` may be clean, not pure noise.

    Source: Ho et al. 2020 (arXiv:2006.11239), equations 6 and 7, for any alpha and sigma.
    """
    ratio = level.alpha / lower.alpha
    added = level.sigma.square() - (ratio * lower.sigma).square()
    share = lower.sigma.square() / level.sigma.square()
    return Posterior(lower.alpha * added / level.sigma.square(), ratio * share, added * share, added)


class Link(NamedTuple):
    """What is known of single steps back from given timesteps; everything broadcasts over the samples.

    Attributes:
        level: the noise level at the timesteps.
        posterior: one timestep down; from timestep 0 to the data.
        log_small: logarithm of the posterior's variance; at timestep 0, where that is 0, it is the one of timestep 1.
        log_beta: logarithm of beta.
        log_large: the same, but at timestep 0 it is `log_small`.
        first: where the timestep is 0.
    """

    level: Level
    posterior: Posterior
    log_small: Tensor
    log_beta: Tensor
    log_large: Tensor
    first: Tensor

    def log_variance(self, kind: Variance, values: Tensor | None) -> Tensor:
        """Logarithm of the variance of the model's step.

        Args:
            kind: of variance.
            values: what the network says of it, (B, C, ...), for the learned ones.

        Raises:
            ValueError: the variance is learned and there are no values, or the kind is unknown.
        """
        match kind:
            case "fixed_small":
                return self.log_small
            case "fixed_large":
                return self.log_large
            case "learned" | "learned_range" if values is None:
                raise ValueError(f"variance {kind} needs what the network says of it: twice as many output channels")
            case "learned":
                return values.float()
            case "learned_range":
                return self.log_small + (values.float() + 1) / 2 * (self.log_beta - self.log_small)
        raise ValueError(f"a variance is fixed_small, fixed_large, learned or learned_range; given: {kind!r}")


class Chain:
    """The steps back of a discrete process, tabled in float64.

    Args:
        process: whose timesteps are walked down one at a time.
    """

    def __init__(self, process: Timesteps) -> None:
        self.steps = process.steps
        bars = process.alpha_bars
        before = torch.cat((bars.new_ones(1), bars[:-1]))
        self.level = Level(bars.sqrt(), (1 - bars).sqrt())
        self.posterior = posterior(self.level, Level(before.sqrt(), (1 - before).sqrt()))
        beta = self.posterior.forward_variance
        least = (self.posterior.variance if self.steps > 1 else beta)[min(1, self.steps - 1)].reshape(1)
        self.log_small = torch.cat((least, self.posterior.variance[1:])).log()
        self.log_beta = beta.log()
        self.log_large = torch.cat((least, beta[1:])).log()
        self._table = Table(torch.stack([*self.level, *self.posterior, self.log_small, self.log_beta, self.log_large]))

    def at(self, times: Tensor, x: Tensor) -> Link:
        """The steps from timesteps (B,), or (B, L) with one for each place of `x` (B, C, L), shaped for `x`."""
        index = times.long()
        rows = [over(row, x) for row in self._table.on(times.device)[:, index]]
        return Link(Level(*rows[:2]), Posterior(*rows[2:6]), rows[6], rows[7], rows[8], over(index == 0, x) > 0)
