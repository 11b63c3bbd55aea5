"""Sections that configure what is registered: data sets, networks, injectors, losses, and what stands in their options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dlas.config.schema.base import Component, Section, opt, req
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
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


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
