"""Sections about training: steps and what the whole run has in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dlas.config.schema.base import Section, opt, req
from dlas.config.schema.components import InjectorConfig, LossConfig, ScheduleConfig
from dlas.types import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(kw_only=True)
class HealthConfig(Section):
    """What is done about bad updates of a step. A bad update is never made, whatever the policy."""

    non_finite: Literal["skip", "reduce_lr", "rollback", "stop"] = opt(
        "skip",
        "where a loss or gradient is not finite: go on with the next batch; the same with a smaller learning rate; go back to "
        "the newest checkpoint, and on with the data that follow; save and end the run",
    )
    max_consecutive: PositiveInt = opt(10, "updates in a row that may be skipped as not finite before the run stops")
    lr_factor: Fraction = opt(0.5, "reduce_lr: the step's learning rate is multiplied by this, for the rest of the run")
    max_reductions: PositiveInt = opt(5, "reduce_lr: the run stops when as many reductions did not suffice")
    max_rollbacks: PositiveInt = opt(3, "rollback: the run stops when as many (of all steps) did not suffice")
    spike: Literal["off", "skip", "reduce_lr", "rollback", "stop"] = opt(
        "off", "the same for updates whose loss or gradient norm is far above what it was lately; off does not look"
    )
    spike_watch: Literal["loss", "gradient", "both"] = opt("both", "a spike of what: the step's total loss, its gradient norm")
    spike_threshold: PositiveFloat = opt(12.0, "how far above the running median is a spike, in robust standard deviations")
    spike_window: PositiveInt = opt(100, "updates over which the median runs; none is judged before half of them are made")


@dataclass(kw_only=True)
class BalanceConfig(Section):
    """Makes the weights of a step's losses their shares of the gradient at a state key."""

    at: str = req("state key where gradients are compared: what the step's network writes, `gen` for instance")
    total: PositiveFloat = opt(1.0, "norm of each sample's gradient at the key, of all balanced losses together")
    decay: Fraction = opt(0.999, "share of the old average of a loss's gradient norm kept at each step")
    exclude: list[str] = opt([], "losses that keep their weights; so do those that do not depend on the key")


@dataclass(kw_only=True)
class StepConfig(Section):
    """One optimiser's part of an iteration: injectors, losses, backward, update. Steps run in the order of the file."""

    training: str | list[str] = req("the network that this step trains, or a list of them")
    optimizer: str = opt("adamw", "a registered optimizer, a class of torch.optim, or a dotted path (`package.Class`)")
    optimizer_params: dict[str, Any] = opt({}, "options of the optimizer: `lr`, `weight_decay`, `betas`, `param_groups`, ...")
    lr_scheme: ScheduleConfig | None = opt(None, "schedule of this step; `train.lr_scheme` by default")
    clip_grad_eps: NonNegativeFloat = opt(0.0, "largest norm of the gradient over all parameters of the step; 0 does not clip")
    health: HealthConfig | None = opt(None, "what is done about bad updates of this step; `train.health` by default")
    after: NonNegativeInt = opt(0, "the step runs from this iteration on")
    before: NonNegativeInt | None = opt(None, "the step runs before this iteration")
    every: PositiveInt = opt(1, "trains in iterations that are a multiple of this; injectors run in all of them")
    injectors: dict[str, InjectorConfig] = opt({}, "run in the order of the file")
    losses: dict[str, LossConfig] = opt({}, "weighted and summed")
    balance: BalanceConfig | None = opt(None, "let the losses' weights be shares of the gradient; off by default")

    @property
    def trained(self) -> list[str]:
        """The networks that this step trains."""
        if self.training is None:  # the checker builds sections with faults, too
            return []
        return [self.training] if isinstance(self.training, str) else list(self.training)


@dataclass(kw_only=True)
class PostHocEmaConfig(Section):
    """Averages that are kept beside the one that is evaluated, and written from time to time (Karras et al. 2024)."""

    every: PositiveInt = req("iterations between snapshots; they go to <run>/ema_snapshots, and all of them stay")
    widths: list[PositiveFloat] = opt([0.05, 0.1], "relative widths; each costs as much memory as the network")
    dtype: Literal["fp16", "bf16", "fp32"] = opt("fp16", "of the snapshots")


@dataclass(kw_only=True)
class EmaConfig(Section):
    """Exponential moving average of the trained networks' weights."""

    enabled: bool = opt(True, "keep an average; it is what is validated and what `test.py` loads")
    rate: Fraction = opt(0.999, "share of the old average kept at each step")
    warmup: bool = opt(False, "smaller rate at first: min(rate, (1 + step) / (10 + step))")
    width: PositiveFloat | None = opt(
        None,
        "power-function average of this relative width in place of `rate`: spans the same share of the run at all times "
        "(0.05: a short one; 0.25: nearly all of it)",
    )
    half_life: PositiveFloat | None = opt(
        None, "in place of `rate`: training samples after which half of the old average is left (StyleGAN2: 10000)"
    )
    device: Literal["cpu"] | None = opt(
        None, "cpu: keep averages in host memory, beside the training; by default where the networks are"
    )
    start: NonNegativeInt = opt(0, "before this iteration the average is the weights themselves: for one of a run's end only")
    post_hoc: PostHocEmaConfig | None = opt(None, "snapshots, of which `dlas ema` makes an average of any width after training")


@dataclass(kw_only=True)
class WatchdogConfig(Section):
    """Looks whether the loop still moves."""

    seconds: NonNegativeFloat = opt(
        1800.0, "a stage of the loop that lasts longer is reported, with the stack of every thread; 0 is off"
    )
    action: Literal["report", "stop"] = opt("report", "stop: ends the process with status 1 after the report")


@dataclass(kw_only=True)
class CrashBundlesConfig(Section):
    """What is kept of a step that went wrong, to run it again with `dlas replay`."""

    count: NonNegativeInt = opt(3, "most bundles in a run folder; the first ones stay. 0 writes none")
    max_mb: PositiveInt = opt(4000, "a larger bundle goes without batch and weights: only its report is written")


@dataclass(kw_only=True)
class NoiseScaleConfig(Section):
    """How noisy gradients are, measured with micro-batches or processes: it tells what larger batches would be good for."""

    every: PositiveInt = opt(1, "iterations between measurements; each takes one more pass over the gradients")
    decay: Fraction = opt(0.99, "share of the older measurements that each one keeps")


@dataclass(kw_only=True)
class BatchSizeOptimizerConfig(Section):
    """Updates from the gradients of several batches, in place of one."""

    type: Literal["gradient_direction", "table", "noise_scale"] = req(
        "how many batches: until directions no longer settle; by `table`; as many as the measured noise scale is worth, which "
        "needs `train.noise_scale`"
    )
    max_full_batches: PositiveInt = opt(10, "most batches of an update (not with `table`)")
    poll_parameters: PositiveInt = opt(8, "gradient_direction: weights whose gradients are looked at, drawn for each update")
    literal_sign: bool = opt(False, "gradient_direction: stop as DL-Art-School's code did, not as its comment said")
    table: list[list[int]] = opt([], "pairs [from iteration, batches an update], the iterations ascending; 1 before the first")
    lr_rule: Literal["none", "sqrt", "linear"] = opt(
        "none", "the learning rate of an update from n batches is multiplied with 1, the root of n, or n"
    )


@dataclass(kw_only=True)
class TrainConfig(Section):
    """The training loop."""

    niter: PositiveInt = req("iterations to run: the run stops exactly there")
    mega_batch_factor: PositiveInt = opt(1, "micro-batches per step (gradient accumulation); the result equals one big batch")
    micro_batch_size: PositiveInt | Literal["auto"] | None = opt(
        None,
        "most samples of a micro-batch, instead of `mega_batch_factor`; auto: the whole batch, halved when memory runs out",
    )
    val_freq: NonNegativeInt = opt(0, "iterations between validations; 0 validates at the end only")
    lr_scheme: ScheduleConfig | None = opt(None, "learning-rate schedule of all steps; constant by default")
    warmup_iter: int = opt(-1, "linear warm-up of the learning rate over this many iterations, under any schedule; -1 is off")
    ema: EmaConfig = field(default_factory=EmaConfig, metadata={"doc": "average of the weights"})
    health: HealthConfig = field(default_factory=HealthConfig, metadata={"doc": "what is done about bad updates, in all steps"})
    noise_scale: NoiseScaleConfig | None = opt(
        None, "measure how noisy the gradient of each network is; takes several micro-batches or processes"
    )
    batch_size_optimizer: BatchSizeOptimizerConfig | None = opt(
        None, "updates from several batches, and from how many; every batch is one by default"
    )
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig, metadata={"doc": "reports of a loop that hangs"})
    crash_bundles: CrashBundlesConfig = field(
        default_factory=CrashBundlesConfig, metadata={"doc": "what is kept of a failed step"}
    )

    def micro_batches(self, samples: int) -> int:
        """Into how many micro-batches a batch is cut, of one sample at least; while memory suffices, with `auto`."""
        size = self.micro_batch_size
        return min(samples, max(self.mega_batch_factor, -(-samples // size) if isinstance(size, int) else 1))
