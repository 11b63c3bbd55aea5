"""The sections of a configuration file: every key, its type, its default and its meaning.

A section that configures a registered component (a network, a loss, ...) lists here only the keys that belong to the trainer;
the component's own options come from its signature and are kept in `options`.
"""

from __future__ import annotations

from dlas.config.schema.base import RAW, Component, Section, opt, req
from dlas.config.schema.components import (
    BetaScheduleConfig,
    DatasetConfig,
    DegradationConfig,
    DiffusionArgsConfig,
    FlowAffineConfig,
    FlowBlocksConfig,
    FlowConfig,
    FlowSplitConfig,
    FreezeConfig,
    InjectorConfig,
    LoraConfig,
    LossConfig,
    NetworkConfig,
    ProcessConfig,
    QuantizerConfig,
    SamplerConfig,
    ScheduleConfig,
    SourceConfig,
    SubnetConfig,
    SwitchedConfig,
    TimesConfig,
    WeightingConfig,
)
from dlas.config.schema.run import (
    CheckpointsConfig,
    CompileConfig,
    Config,
    DeepSpeedConfig,
    DistributedConfig,
    EncodeConfig,
    EvalConfig,
    KeepBestConfig,
    LoggerConfig,
    PathConfig,
    ProfileConfig,
)
from dlas.config.schema.training import (
    BalanceConfig,
    BatchSizeOptimizerConfig,
    CrashBundlesConfig,
    EmaConfig,
    HealthConfig,
    NoiseScaleConfig,
    PostHocEmaConfig,
    StepConfig,
    TrainConfig,
    WatchdogConfig,
)

__all__ = [
    "NESTED",
    "RAW",
    "SECTIONS",
    "BalanceConfig",
    "BatchSizeOptimizerConfig",
    "BetaScheduleConfig",
    "CheckpointsConfig",
    "CompileConfig",
    "Component",
    "Config",
    "CrashBundlesConfig",
    "DatasetConfig",
    "DeepSpeedConfig",
    "DegradationConfig",
    "DiffusionArgsConfig",
    "DistributedConfig",
    "EmaConfig",
    "EncodeConfig",
    "EvalConfig",
    "FlowAffineConfig",
    "FlowBlocksConfig",
    "FlowConfig",
    "FlowSplitConfig",
    "FreezeConfig",
    "HealthConfig",
    "InjectorConfig",
    "KeepBestConfig",
    "LoggerConfig",
    "LoraConfig",
    "LossConfig",
    "NetworkConfig",
    "NoiseScaleConfig",
    "PathConfig",
    "PostHocEmaConfig",
    "ProcessConfig",
    "ProfileConfig",
    "QuantizerConfig",
    "SamplerConfig",
    "ScheduleConfig",
    "Section",
    "SourceConfig",
    "StepConfig",
    "SubnetConfig",
    "SwitchedConfig",
    "TimesConfig",
    "TrainConfig",
    "WatchdogConfig",
    "WeightingConfig",
    "nested_words",
    "opt",
    "req",
]

SECTIONS: dict[str, type[Section]] = {
    cls.__name__: cls
    for cls in (
        DatasetConfig, FreezeConfig, SwitchedConfig, LoraConfig, NetworkConfig, InjectorConfig, LossConfig, ScheduleConfig,
        HealthConfig, BalanceConfig, StepConfig, PostHocEmaConfig, EmaConfig, NoiseScaleConfig, WatchdogConfig,
        CrashBundlesConfig, BatchSizeOptimizerConfig, TrainConfig, EvalConfig, EncodeConfig, LoggerConfig, CompileConfig,
        ProfileConfig, KeepBestConfig, CheckpointsConfig, PathConfig, DeepSpeedConfig, DistributedConfig, Config,
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
