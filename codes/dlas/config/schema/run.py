"""Sections about evaluation, logs, files and processes, and the whole file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from dlas.config.problems import Problem
from dlas.config.schema.base import RAW, Section, opt, req
from dlas.config.schema.components import DatasetConfig, InjectorConfig, NetworkConfig
from dlas.config.schema.training import StepConfig, TrainConfig
from dlas.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

MetricName: TypeAlias = str
"""Name of a registered metric."""


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
class CompileConfig(Section):
    """Which networks torch.compile compiles, and how."""

    networks: list[str] | None = opt(None, "names of networks; by default all, trained or frozen, each when it is first called")
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = opt(
        "default",
        "torch's; reduce-overhead: CUDA graphs, for inputs of fixed sizes; max-autotune: kernels are chosen by timing them, "
        "too; max-autotune-no-cudagraphs: that alone",
    )
    dynamic: bool | None = opt(
        None,
        "false: code for each size of inputs; true: code that serves all sizes, from the start; by default torch tries the "
        "former, and the latter once it meets a second size",
    )
    fullgraph: bool = opt(False, "what cannot be compiled in one piece ends the run; by default it is compiled in several")
    backend: str = opt("inductor", "one of torch's compilers; eager and aot_eager show what can be traced, and gain nothing")
    evaluation: bool = opt(
        False, "networks are compiled in evaluation, too, where other sizes and modes mean that they are compiled once more"
    )


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
    compile: bool | CompileConfig | None = opt(
        False,
        "true, or a section that says how: compile the forward and backward pass of each network (torch.compile), which takes "
        "a while at first",
    )
    deterministic: bool = opt(False, "refuse operations that give different bits in another run")
    tf32: bool = opt(True, "TensorFloat-32 for float32 products on GPUs that have it")
    cudnn_benchmark: bool = opt(True, "let cuDNN time its convolutions and keep the fastest")
    checkpointing_enabled: bool = opt(False, "gradient checkpointing in networks that offer it: less memory, slower")
    anomaly_detection: bool = opt(False, "let autograd name the operation that made a NaN; slow")
    sync_debug_mode: Literal["warn", "error"] | None = opt(
        None, "on CUDA: warn of an operation of a training step that lets the loop wait for the device, or refuse it"
    )
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
