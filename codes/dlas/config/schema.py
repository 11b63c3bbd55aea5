"""The sections of a configuration file: every key, its type, its default and its meaning.

A section that configures a registered component (a network, a loss, ...) lists here only the keys that belong to the trainer;
the component's own options come from its signature and are kept in `options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from dlas.config.problems import Problem
from dlas.config.source import Mark, MarkedDict
from dlas.registry import (
    ARCHS,
    DATASETS,
    DEGRADATIONS,
    INJECTORS,
    LOSSES,
    PROCESSES,
    QUANTIZERS,
    SAMPLERS,
    SCHEDULES,
    TIMES,
    WEIGHTINGS,
    Registry,
)
from dlas.types import (
    FlowAffineOptions,
    FlowBlocksOptions,
    FlowSplitOptions,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

MetricName: TypeAlias = str
"""Name of a registered metric."""

RAW = "raw_"
"""Stands before the names of figures of the networks' own weights where those of their averages stand beside them."""


def opt(default: Any, doc: str) -> Any:
    """A key with a default. Mappings and lists are copied for each file."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def req(doc: str) -> Any:
    """A key that must be given."""
    return field(metadata={"doc": doc})


@dataclass(kw_only=True)
class Section:
    """Part of a configuration.

    `mark` and `yaml_path` tell where it was written; `given` holds what was written, as it was, with the place of each key and
    value: own keys under their documented name, options of a component beside them. `damaged` sections have keys that are not
    known, or values that could not be used and are None here.
    """

    mark: Mark = field(default=Mark(""), repr=False, compare=False, metadata={"internal": True})
    yaml_path: str = field(default="", repr=False, compare=False, metadata={"internal": True})
    damaged: bool = field(default=False, repr=False, compare=False, metadata={"internal": True})
    given: MarkedDict = field(
        default_factory=lambda: MarkedDict(Mark("")), repr=False, compare=False, metadata={"internal": True}
    )


@dataclass(kw_only=True)
class Component(Section):
    """A section that configures a registered component."""

    REGISTRY: ClassVar[Registry]
    NAME_KEYS: ClassVar[tuple[str, ...]] = ("type",)
    NESTED: ClassVar[tuple[str, ...]] = ()  # keys under which the component's options may also stand

    options: dict[str, Any] = field(default_factory=dict, metadata={"internal": True})

    @property
    def component(self) -> str:
        """The registered name."""
        return str(getattr(self, self.NAME_KEYS[0]))


@dataclass(kw_only=True)
class DatasetConfig(Component):
    """One data set; the one called `train` is trained on, every other one is validated on."""

    REGISTRY: ClassVar[Registry] = DATASETS
    NAME_KEYS: ClassVar[tuple[str, ...]] = ("mode",)

    mode: str = req("registered data set")
    name: str | None = opt(None, "name in messages, folders and TensorBoard; the key of the section by default")
    batch_size: PositiveInt = opt(1, "samples per optimiser step over all devices (training set only)")
    n_workers: NonNegativeInt = opt(0, "processes that load data; 0 loads in the training process")
    pin_memory: bool = opt(True, "page-locked host memory for faster copies to a GPU")
    prefetch_factor: PositiveInt = opt(2, "batches that each worker prepares ahead")


@dataclass(kw_only=True)
class SourceConfig(Component):
    """The data set that another one is made of."""

    REGISTRY: ClassVar[Registry] = DATASETS
    NAME_KEYS: ClassVar[tuple[str, ...]] = ("mode",)

    mode: str = req("registered data set")


@dataclass(kw_only=True)
class FreezeConfig(Section):
    """Parameters of a network that are not trained for part of the run; their optimiser passes them over."""

    match: str = req("regular expression that is found in the names of these parameters: `^RRDB\\.`")
    after: NonNegativeInt = opt(0, "frozen from this iteration on")
    before: NonNegativeInt | None = opt(None, "frozen before this iteration; without it, to the end")


@dataclass(kw_only=True)
class SwitchedConfig(Section):
    """Which convolutions of a network have several kernels, of which one acts at each place, and how it is chosen."""

    layers: list[str] = req(
        "names of convolutions, as the names of weights have them without `.weight`; `*` stands for a part of a name between "
        "dots, `**` for any number of parts, `?` for a letter"
    )
    breadth: PositiveInt = opt(8, "kernels of each")
    hard: bool = opt(True, "one kernel at each place; false: a mixture of all")
    bias: Literal["shared", "each"] = opt("shared", "one for all kernels, or one for each")
    selector: Literal["coupler", "lambda", "lambda2", "mapping", "shared"] = opt(
        "coupler",
        "what chooses, from a layer's input: a 1x1 convolution; one or two lambda layers, which see all of a picture; two 5x5 "
        "convolutions, the form of 2020; shared: two such ones for all layers together",
    )
    source: str | None = opt(None, "name of the convolution whose output a shared selector looks at; it runs before the others")
    router: Literal["largest", "noisy"] = opt(
        "largest", "what wins: the largest share, or that under learned noise, which goes with `norm: null` and `switch_load`"
    )
    norm: Literal["sum_to_one", "rescaled"] | None = opt(
        "sum_to_one", "divides shares by how much each kernel was used lately; how they are normalised after it"
    )
    norm_window: PositiveInt = opt(256, "training passes that count for it, and after which it begins")
    dropout: Fraction = opt(0.4, "probability with which a kernel is out of a picture's choice in training")
    dropout_form: Literal["zero", "exclude"] = opt(
        "zero", "zero: a kernel that is out has the logit 0, as published, and may still win; exclude: it cannot"
    )
    temperature: PositiveFloat = opt(1.0, "divides the logits; the injector `switched_generator` can change it")


@dataclass(kw_only=True)
class LoraConfig(Section):
    """Low-rank adapters: the network's weights are frozen, and small factors beside them are trained."""

    rank: PositiveInt = opt(8, "of the product of two factors that is added to a weight")
    alpha: PositiveFloat | None = opt(None, "the product is multiplied by alpha / rank; `rank` by default")
    targets: list[str] = opt(
        ["**"],
        "names of linear layers and convolutions, as the names of weights have them without `.weight`; `*` stands for a part "
        "of a name between dots, `**` for any number of parts, `?` for a letter",
    )
    dropout: Fraction = opt(
        0.0, "of the factors' input, in training; not where a network reads the weight itself, and not in grouped convolutions"
    )
    trained: list[str] = opt([], "names of further parameters, by the same patterns, that are trained themselves")
    start: str | None = opt(None, "file of factors to begin from, as `dlas convert lora --adapters` writes it")


@dataclass(kw_only=True)
class NetworkConfig(Component):
    """One network; the architecture's own options stand beside these keys, or under `kwargs` or `args`."""

    REGISTRY: ClassVar[Registry] = ARCHS
    NAME_KEYS: ClassVar[tuple[str, ...]] = ("which_model", "which_model_G", "which_model_D")
    NESTED: ClassVar[tuple[str, ...]] = ("kwargs", "args")

    which_model: str = req("registered architecture (`which_model_G` and `which_model_D` mean the same)")
    type: Literal["generator", "discriminator"] = opt("generator", "role of the network, shown in listings")
    trainable: bool = opt(True, "false freezes the network: no gradients, evaluation mode")
    device: NonNegativeInt | str | None = opt(
        None,
        "where it is, if not where the run is: cpu, or a GPU by its number (1 or cuda:1); its inputs are brought there, its "
        "results back",
    )
    freeze: dict[str, FreezeConfig] = opt({}, "parts of it that are not trained for part of the run, by any names")
    fresh: list[str] = opt(
        [],
        "names of weights that keep their first values where `path.pretrain` has others, of any shape: what a new vocabulary "
        "changes, for instance; `*` stands for a part of a name between dots, `**` for any number of parts",
    )
    switched: SwitchedConfig | None = opt(None, "puts switched convolutions in the place of plain ones, any network's")
    lora: LoraConfig | None = opt(None, "fine-tunes by low-rank adapters, any network")


@dataclass(kw_only=True)
class SubnetConfig(Component):
    """The network that another one is made of."""

    REGISTRY: ClassVar[Registry] = ARCHS
    NAME_KEYS: ClassVar[tuple[str, ...]] = ("which_model", "which_model_G", "which_model_D")
    NESTED: ClassVar[tuple[str, ...]] = ("kwargs", "args")

    which_model: str = req("registered architecture (`which_model_G` and `which_model_D` mean the same)")


@dataclass(kw_only=True)
class InjectorConfig(Component):
    """One injector: reads state keys and writes new ones."""

    REGISTRY: ClassVar[Registry] = INJECTORS

    type: str = req("registered injector")
    after: NonNegativeInt = opt(0, "runs from this step on")
    before: NonNegativeInt | None = opt(None, "runs before this step")
    every: PositiveInt = opt(1, "runs in steps that are a multiple of this")
    train: bool = opt(False, "true: in training only")
    eval: bool = opt(False, "true: in evaluation only")
    no_grad: bool = opt(False, "true: runs without recording gradients")


@dataclass(kw_only=True)
class LossConfig(Component):
    """One loss: reads state keys and gives a scalar. A loss that is off is not computed."""

    REGISTRY: ClassVar[Registry] = LOSSES

    type: str = req("registered loss")
    weight: float = req("factor in the step's sum")
    after: NonNegativeInt = opt(0, "on from this step on")
    before: NonNegativeInt | None = opt(None, "on before this step")
    every: PositiveInt = opt(1, "on in steps that are a multiple of this")


@dataclass(kw_only=True)
class ScheduleConfig(Component):
    """A learning-rate schedule: a registered one, or any class of torch.optim.lr_scheduler by name."""

    REGISTRY: ClassVar[Registry] = SCHEDULES

    type: str = req("name of the schedule")


@dataclass(kw_only=True)
class DegradationConfig(Component):
    """How low-quality images are made of high-quality ones; an option of data sets and injectors."""

    REGISTRY: ClassVar[Registry] = DEGRADATIONS

    type: str = req("registered degradation")


@dataclass(kw_only=True)
class ProcessConfig(Component):
    """What a time of a diffusion means: its noise level, and what the network is told of it."""

    REGISTRY: ClassVar[Registry] = PROCESSES

    type: str = req("registered process")


@dataclass(kw_only=True)
class TimesConfig(Component):
    """How often a diffusion is trained at which times."""

    REGISTRY: ClassVar[Registry] = TIMES

    type: str = req("registered distribution of times")


@dataclass(kw_only=True)
class WeightingConfig(Component):
    """How much a diffusion's error counts at which noise level."""

    REGISTRY: ClassVar[Registry] = WEIGHTINGS

    type: str = req("registered weighting")


@dataclass(kw_only=True)
class SamplerConfig(Component):
    """How samples are drawn from a diffusion."""

    REGISTRY: ClassVar[Registry] = SAMPLERS

    type: str = req("registered sampler")


@dataclass(kw_only=True)
class QuantizerConfig(Component):
    """What replaces vectors by codes."""

    REGISTRY: ClassVar[Registry] = QUANTIZERS

    type: str = req("registered quantizer")


@dataclass(kw_only=True)
class BetaScheduleConfig(Section):
    """A diffusion's noise by timestep, as DL-Art-School's files tell it."""

    schedule_name: Literal["linear", "cosine"] = req("how noise grows")
    num_diffusion_timesteps: PositiveInt = req("timesteps")


@dataclass(kw_only=True)
class DiffusionArgsConfig(Section):
    """What a diffusion model predicts and how it is trained, as DL-Art-School's files tell it."""

    model_mean_type: Literal["epsilon", "previous_x", "start_x"] = req("what the network predicts")
    model_var_type: Literal["learned", "fixed_small", "fixed_large", "learned_range"] = req("variance of the model's steps")
    loss_type: Literal["mse", "rescaled_mse", "kl", "rescaled_kl"] = req("what is minimised")
    rescale_timesteps: bool = opt(False, "tell the network t * 1000 / T in place of t")
    conditioning_free: bool = opt(False, "when sampling, lean away from what the network sees without its condition")
    conditioning_free_k: float = opt(1.0, "how far: (1 + k) with - k without")
    ramp_conditioning_free: bool = opt(True, "k grows from 0 at the noisiest timestep")


@dataclass(kw_only=True)
class FlowSplitConfig(Section):
    """How channels are taken away between the levels of a flow."""

    enable: bool = opt(True, "whether they are")
    type: Literal["Split2d"] = opt("Split2d", "with mean and deviation that follow from what stays")
    consume_ratio: Fraction = opt(0.5, "share of the channels that is taken away")
    logs_eps: Literal[0] = opt(0, "added to logarithms of deviations")
    correct_splits: bool = opt(False, "also before the last level, which the published networks leave out")


@dataclass(kw_only=True)
class FlowBlocksConfig(Section):
    """Which blocks of the encoder are part of a flow's condition."""

    blocks: list[NonNegativeInt] = opt([1, 8, 15, 22], "RRDBs, counted from 0, whose results are")
    concat: Literal[True] = opt(True, "beside each other")


@dataclass(kw_only=True)
class FlowAffineConfig(Section):
    """The affine maps of a flow."""

    hidden_channels: PositiveInt = opt(64, "width of the small networks within them")
    eps: PositiveFloat = opt(1e-4, "least scale")


@dataclass(kw_only=True)
class FlowConfig(Section):
    """The shape of SRFlow's flow, in the words of its authors' files; where one value is allowed, that one is built."""

    K: PositiveInt | None = opt(None, "the network's option of this name, which may be repeated here")
    L: PositiveInt | None = opt(None, "times that the picture's sides are halved; log2 of the enlargement, and one, by default")
    additionalFlowNoAffine: NonNegativeInt = opt(2, "steps without affine maps at the beginning of each level")  # noqa: N815
    coupling: Literal["CondAffineSeparatedAndCond"] = opt("CondAffineSeparatedAndCond", "affine maps of the steps")
    flow_permutation: Literal["invconv"] = opt("invconv", "how channels are mixed in a step: by a 1x1 convolution")
    fea_up0: Literal[True] = opt(True, "the encoder's features at half of their size are the condition of a level")
    gaussian_loss_weight: Literal[1] = opt(1, "of what the splits take away, in the likelihood")
    split: FlowSplitOptions | None = opt(None, "how channels are taken away between levels")
    stackRRDB: FlowBlocksOptions | None = opt(None, "which blocks of the encoder are part of every condition")  # noqa: N815
    CondAffineSeparatedAndCond: FlowAffineOptions | None = opt(None, "the affine maps")


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


@dataclass(kw_only=True)
class EvalConfig(Section):
    """Validation during training, and test.py."""

    output_state: str = opt("gen", "state key of the network's picture")
    target_state: str = opt("hq", "state key of the true picture")
    input_state: str = opt(
        "lq", "state key of the input picture, for the baseline and the comparison sheets; there need not be one"
    )
    reverse_n1_to_1: bool | list[str] = opt(
        False, "state keys whose pictures are in [-1, 1]: they are mapped to [0, 1]; true: those of all keys named here"
    )
    injectors: dict[str, InjectorConfig] = opt({}, "run instead of the steps' injectors")
    metrics: list[MetricName] = opt(["psnr_y", "ssim_y"], "registered metrics, on pictures rounded to 8 bits")
    metric_options: dict[str, dict[str, Any]] = opt({}, "options of metrics by name: `lpips: {net: vgg}`")
    values: list[str] = opt(
        [],
        "state keys with one number a sample (a bound, a loss; with `batch_size: 1` also a batch's one number), reported like "
        "metrics under their names; lower is better",
    )
    crop_border: NonNegativeInt | None = opt(None, "pixels left out at each side by the metrics; `scale` by default")
    baseline: Literal["bicubic", "none"] = opt("bicubic", "a reference reported beside each metric, where `scale` is over 1")
    weights: Literal["ema", "raw", "both"] = opt(
        "ema",
        "which weights: their averages where there are any, those of the last iteration, or both, one after the other; the "
        "figures of the latter have `raw_` in front of their names then",
    )
    batch_size: PositiveInt = opt(1, "pictures of the same size that go through the networks at once")
    precision: Literal["fp32", "bf16", "fp16", "auto"] | None = opt(None, "of the evaluation alone; by default that of the run")
    tile: NonNegativeInt | Literal["auto"] = opt(
        0,
        "side of the tiles, in pixels of the network's input, in which pictures are evaluated; auto: by free memory; 0: none",
    )
    self_ensemble: bool = opt(False, "evaluate the mean over the eight ways of turning and mirroring a picture")
    num_sheets: NonNegativeInt = opt(
        4, "comparison sheets (input, baseline, output, truth) sent to TensorBoard, of sets with input pictures"
    )
    grid: NonNegativeInt | None = opt(
        None,
        "outputs on one sheet, val/<set>/<step>.grid.png and TensorBoard; by default 64 of sets without input pictures, of "
        "others none",
    )
    strips: list[str] = opt(
        [],
        "state keys with a series of pictures for each sample, (batch, steps, channels, height, width) or side by side: rows "
        "of a sheet, val/<set>/<step>.<key>.png and TensorBoard",
    )
    num_strips: NonNegativeInt = opt(8, "rows of these sheets")
    save_images: bool = opt(True, "write val/<set>/<image>/<step>.png, of sound also .wav")
    sampling_rate: PositiveInt | None = opt(
        None, "what the network makes is sound, (batch, samples) or (batch, 1, samples) in [-1, 1], of so many Hz"
    )

    @property
    def figures(self) -> list[str]:
        """Names under which metrics and values are reported, without the baseline's."""
        metrics = [*(self.metrics or []), *(self.values or [])]
        return metrics + [RAW + name for name in metrics] if self.weights == "both" else metrics


@dataclass(kw_only=True)
class EncodeConfig(Section):
    """What `dlas data encode` does for data sets of the mode `latents`, once, not again and again while training."""

    injectors: dict[str, InjectorConfig] = opt({}, "run on batches of the source, in evaluation and without gradients")
    batch_size: PositiveInt = opt(16, "samples that are encoded at once; 1 for those that differ in size")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = opt("fp32", "of the networks while they encode")
    dtype: Literal["fp16", "bf16", "fp32"] = opt("fp16", "in which numbers are kept; whole numbers stay what they are")
    mirror: list[str] = opt(
        [], "images of the source that are also encoded mirrored left to right: a second view of each sample"
    )
    copies: PositiveInt = opt(1, "times that each sample is drawn from the source: as many random crops or captions")
    part_size: PositiveInt = opt(1024, "samples in a file; what is complete of them survives a stop")


@dataclass(kw_only=True)
class LoggerConfig(Section):
    """What is written while training."""

    print_freq: PositiveInt = opt(100, "iterations between log lines")
    save_checkpoint_freq: PositiveInt = opt(1000, "iterations between checkpoints; the end is always saved")
    tensorboard: bool = opt(True, "write TensorBoard files to <run>/tb")
    efficiency: bool = opt(
        True,
        "measure once what the device can do, count the arithmetic of each step's first iteration, and tell `tflops` and `mfu`",
    )
    visuals: list[str] = opt(
        [], "keys whose pictures, spectrograms, alignments or sound (as a spectrogram) go to <run>/visuals and TensorBoard"
    )
    audio: dict[str, PositiveInt] = opt(
        {},
        "state keys of sound, (B, N) or (B, 1, N), with their rates in Hz; the first of a batch is written beside the pictures",
    )
    visual_debug_rate: PositiveInt = opt(500, "iterations between those pictures and sounds")
    reverse_n1_to_1: bool = opt(False, "visuals are in [-1, 1]: map them to [0, 1]")


@dataclass(kw_only=True)
class ProfileConfig(Section):
    """A profile of a few iterations, written to <run>/profile: a Chrome trace, the dearest operations, allocations on CUDA."""

    after: NonNegativeInt = opt(20, "iterations of a sitting before it, to warm up")
    steps: PositiveInt = opt(5, "iterations that are profiled; they are slower than others")
    memory: bool = opt(True, "memory of operations; on CUDA every allocation with its stack")
    shapes: bool = opt(False, "tell operations apart by the shapes of their inputs")


@dataclass(kw_only=True)
class KeepBestConfig(Section):
    """The metric by which a checkpoint is the best one."""

    metric: str = req(
        "one of `eval.metrics`, or with `eval.weights: both` one with `raw_` in front; what improves it is saved at once"
    )
    mode: Literal["max", "min"] | None = opt(None, "whether more or less of it is better; the metric knows by default")
    set: str | None = opt(None, "name of the data set that is looked at; the first one validated on by default")


@dataclass(kw_only=True)
class CheckpointsConfig(Section):
    """How checkpoints are written, and which of them stay."""

    format: Literal["whole", "sharded"] = opt(
        "whole",
        "whole: a safetensors file for each network, put together and written by the first process; sharded: every process "
        "writes the part that it holds (for `strategy: fsdp`), and reads no more of it with any number of processes",
    )
    background: bool = opt(True, "write beside the training, which waits only until its state is copied")
    keep_last: PositiveInt | None = opt(None, "newest checkpoints to keep; all of them by default")
    keep_every: PositiveInt | None = opt(None, "with `keep_last`: those of steps that are a multiple of this stay, too")
    keep_best: KeepBestConfig | None = opt(None, "save what validates best, keep it, and name it in checkpoints/best")
    retry_for: NonNegativeFloat = opt(600.0, "seconds for which a disk that fails is tried again before the run stops")
    retry_pause: PositiveFloat = opt(2.0, "seconds before the first of these tries; doubled after each, up to a minute")


@dataclass(kw_only=True)
class DeepSpeedConfig(Section):
    """What DeepSpeed is told, beyond what follows from the rest of the file."""

    stage: Literal[1, 2, 3] = opt(
        2, "what is cut up among the processes: 1: optimiser states and masters of weights; 2: gradients, too; 3: weights, too"
    )
    offload_optimizer: bool = opt(False, "optimiser states lie in the host's memory, and updates are made there")
    offload_param: bool = opt(False, "stage 3: weights lie in the host's memory while they are not used")
    config: str | None = opt(None, "file with DeepSpeed's own JSON, whose entries go before those made of this file")
    options: dict[str, Any] = opt({}, "entries of DeepSpeed's own JSON, which go before those of `config`")


@dataclass(kw_only=True)
class DistributedConfig(Section):
    """Training in several processes: `torchrun --nproc_per_node=N train.py -opt FILE`, one process for each GPU."""

    strategy: Literal["none", "ddp", "fsdp", "deepspeed"] | None = opt(
        None,
        "ddp: each process holds everything and takes its part of the batch (default with several processes); fsdp: weights, "
        "gradients, optimiser states and averages are cut up among them, too; deepspeed: the same by DeepSpeed's ZeRO, in "
        "stages; none: refuses to be started as several",
    )
    gpu_ids: list[NonNegativeInt] = opt([], "GPUs that the processes of a machine take, in order; all of them by default")
    timeout: PositiveFloat = opt(1800.0, "seconds that a process waits for the others before the run ends")
    sync_batchnorm: bool = opt(False, "batch normalisation over the batch of all processes (GPUs only)")
    bucket_mb: PositiveFloat = opt(25.0, "ddp: gradients travel in pieces of this size while the backward pass goes on")
    find_unused_parameters: bool = opt(
        True,
        "ddp: parameters may be without a gradient, always or at times (losses with gates, branches); looking for them costs a "
        "walk through the graph in every iteration",
    )
    static_graph: bool = opt(
        False, "ddp: every iteration does the same, so that what has no gradient is looked for only once; faster"
    )
    shard_size: PositiveInt | None = opt(
        None, "fsdp: cut up among groups of so many processes, each group holds everything; by default among all"
    )
    gather_for_evaluation: bool = opt(
        True,
        "fsdp: while it evaluates its share of a set, every process holds all weights; false: it evaluates the whole set, "
        "block by block, which takes less memory and longer",
    )
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig, metadata={"doc": "`strategy: deepspeed`"})
    gather_dtype: Literal["fp32", "bf16"] = opt("fp32", "fsdp: type of numbers in which weights travel and are computed with")


@dataclass(kw_only=True)
class PathConfig(Section):
    """Where things are read and written."""

    experiments: str = opt("experiments", "folder that holds the run folders, relative to where the program is started")
    resume_state: str | None = opt(None, "checkpoint folder to go on from; by default the newest of this run")
    pretrain: dict[str, str] = opt({}, "network: weights file (.safetensors or .pth) to start from")
    strict_load: bool = opt(True, "false: entries that are missing or do not fit are left out of `pretrain` loading")
    run: str | None = opt(None, "test.py only: run folder whose networks, steps and weights are used")
    checkpoint: str = opt("latest", "test.py only: which checkpoint of `run`: latest, best, or a step")


@dataclass(kw_only=True)
class Config(Section):
    """A whole file."""

    name: str = req("name of the run and of its folder")
    scale: PositiveInt = opt(1, "super-resolution factor; given to data sets and networks that take one and are not told")
    seed: NonNegativeInt = opt(0, "all randomness is a function of this, the step and the sample")
    device: str = opt("auto", "auto (CUDA or ROCm, else MPS, else CPU), cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = opt(
        "fp32", "automatic mixed precision; auto: bf16 where the device computes in it, else fp16 on a GPU, fp32 on a CPU"
    )
    memory_format: Literal["contiguous", "channels_last"] = opt("contiguous", "memory layout of networks and images")
    compile: bool = opt(
        False, "compile the forward and backward pass of each network (torch.compile), which takes a while at first"
    )
    deterministic: bool = opt(False, "refuse operations that give different bits in another run")
    tf32: bool = opt(True, "TensorFloat-32 for float32 products on GPUs that have it")
    cudnn_benchmark: bool = opt(True, "let cuDNN time its convolutions and keep the fastest")
    checkpointing_enabled: bool = opt(False, "gradient checkpointing in networks that offer it: less memory, slower")
    anomaly_detection: bool = opt(False, "let autograd name the operation that made a NaN; slow")
    plugins: list[str] = opt([], "files, folders or modules with your own networks, losses, injectors, data sets")
    datasets: dict[str, DatasetConfig] = opt({}, "`train` and any number of others to validate on")
    networks: dict[str, NetworkConfig] = opt({}, "networks by name")
    steps: dict[str, StepConfig] = opt({}, "steps by name, in order")
    train: TrainConfig | None = opt(None, "the loop; needed to train")
    eval: EvalConfig = field(default_factory=EvalConfig, metadata={"doc": "validation and testing"})
    encode: EncodeConfig | None = opt(None, "how data sets of the mode `latents` are made of others, by `dlas data encode`")
    logger: LoggerConfig = field(default_factory=LoggerConfig, metadata={"doc": "logs"})
    profile: ProfileConfig | None = opt(None, "profile a few iterations")
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig, metadata={"doc": "writing and keeping"})
    path: PathConfig = field(default_factory=PathConfig, metadata={"doc": "files and folders"})
    distributed: DistributedConfig = field(default_factory=DistributedConfig, metadata={"doc": "several processes"})

    notices: list[Problem] = field(default_factory=list, repr=False, metadata={"internal": True})

    def evaluation_injectors(self) -> list[tuple[str, InjectorConfig]]:
        """What runs in evaluation, by name: `eval.injectors`, else those of the step that makes the output, else all steps'."""
        if self.eval.injectors:
            return list(self.eval.injectors.items())
        chosen: list[tuple[str, InjectorConfig]] = []
        for step in self.steps.values():
            own = list((step.injectors or {}).items())  # the checker builds sections with faults, too
            for _, section in own:
                out = section.options.get("out")
                if self.eval.output_state == out or (isinstance(out, list) and self.eval.output_state in out):
                    return own
            chosen += own
        return chosen

    def output_injector(self) -> InjectorConfig | None:
        """The injector that writes `eval.output_state` in evaluation; None if none does, or the data set gives it."""
        key = self.eval.output_state
        found = None
        for _, section in self.evaluation_injectors():
            out = section.options.get("out")
            if not section.train and (key == out or (isinstance(out, list) and key in out)):
                found = section
        return found


SECTIONS: dict[str, type[Section]] = {
    cls.__name__: cls
    for cls in (
        DatasetConfig, FreezeConfig, SwitchedConfig, LoraConfig, NetworkConfig, InjectorConfig, LossConfig, ScheduleConfig,
        HealthConfig, BalanceConfig, StepConfig, PostHocEmaConfig, EmaConfig, NoiseScaleConfig, WatchdogConfig,
        CrashBundlesConfig, BatchSizeOptimizerConfig, TrainConfig, EvalConfig, EncodeConfig, LoggerConfig, ProfileConfig,
        KeepBestConfig, CheckpointsConfig, PathConfig, DeepSpeedConfig, DistributedConfig, Config,
    )
}  # fmt: skip

NESTED: dict[str, type[Section]] = {
    "DegradationOptions": DegradationConfig,
    "ProcessOptions": ProcessConfig,
    "TimesOptions": TimesConfig,
    "WeightingOptions": WeightingConfig,
    "SamplerOptions": SamplerConfig,
    "QuantizerOptions": QuantizerConfig,
    "DatasetOptions": SourceConfig,
    "NetworkOptions": SubnetConfig,
    "FlowOptions": FlowConfig,
    "FlowSplitOptions": FlowSplitConfig,
    "FlowBlocksOptions": FlowBlocksConfig,
    "FlowAffineOptions": FlowAffineConfig,
    "BetaScheduleOptions": BetaScheduleConfig,
    "DiffusionArgsOptions": DiffusionArgsConfig,
}
"""Annotations of options that are sections themselves, most of them with the name of a component and its options."""


def nested_words(cls: type[Section]) -> str:
    """What stands at such an option, in words."""
    return f"a {cls.REGISTRY.kind}" if issubclass(cls, Component) else "a mapping"
