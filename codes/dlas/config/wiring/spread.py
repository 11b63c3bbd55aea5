"""What cannot be had with a strategy for several processes, and keys that are for another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dlas.config.deepspeed_json import deepspeed_json
from dlas.config.problems import Problem, Severity
from dlas.config.schema import Config, DeepSpeedConfig, DistributedConfig, InjectorConfig, LossConfig, Section, TrainConfig
from dlas.config.torch_classes import optimizer_entry
from dlas.config.wiring.components import chosen, facts, key_at, option
from dlas.errors import ConfigurationError

_KEYS = {
    "ddp": ("sync_batchnorm", "bucket_mb", "find_unused_parameters", "static_graph"),
    "fsdp": ("shard_size", "gather_for_evaluation", "gather_dtype"),
    "deepspeed": ("deepspeed",),
}
_NUMERIC = ("sync_batchnorm", "gather_dtype")  # where they are not heeded, other numbers come out
_CLASSES = {
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd": "SGD",
    "lamb": "Lamb",
    "lars": "Lars",
    "fused_adam": "AdamW",
    "fused_sgd": "SGD",
    "fused_adagrad": "Adagrad",
    "fused_lamb": "Lamb",
    "fused_novograd": "FusedNovoGrad",
}

BY_NUMBER = frozenset(["Adam", "AdamW", "FusedAdam", "SGD", "RMSprop", "Adamax", "NAdam", "RAdam", "Adadelta", "ASGD", "Rprop"])
"""Optimisers that DeepSpeed can have: their update of flat pieces is the same one, since they treat each number by itself."""
_BY_PART = ("Adafactor", "Rprop")  # torch's, on tensors that are cut up: another result, and an operation that it has not


def check_spread(config: Config, problems: list[Problem], severity: Severity = "error") -> None:
    """Notes what the strategy of a file for training cannot do, as far as the file tells.

    Args:
        config: of the run.
        problems: takes the problems.
        severity: a warning where there may be only one process, in which a strategy has no effect.
    """
    section, train = config.distributed, config.train
    if train is None or section is None or section.strategy == "none":
        return
    spread = _Spread(config, section, train, section.strategy or "ddp", severity, problems)
    spread.check_keys()
    spread.check_meetings()
    {"ddp": spread.check_ddp, "fsdp": spread.check_fsdp, "deepspeed": spread.check_deepspeed}[spread.strategy]()


def called_methods(config: Config) -> Iterator[tuple[str, str, InjectorConfig]]:
    """Networks, methods other than `forward` by which injectors call them, and those injectors."""
    sections = [each for step in config.steps.values() for each in (step.injectors or {}).values()]
    for section in (*sections, *(each for _, each in config.evaluation_injectors())):
        method = section.options.get("method")
        if isinstance(method, str):
            yield str(section.options.get("generator")), method, section


def optimizer_class(name: str) -> str | None:
    """The class of the optimiser that a step names; None if that is not known here."""
    if name.lower() in _CLASSES:
        return _CLASSES[name.lower()]
    entry = optimizer_entry(name)
    return entry.name if entry is not None else name.rpartition(".")[2] if "." in name else None


@dataclass
class _Spread:
    config: Config
    section: DistributedConfig
    train: TrainConfig
    strategy: str
    severity: Severity
    problems: list[Problem]
    stage3: bool = field(init=False)

    def __post_init__(self) -> None:
        self.stage3 = self.strategy == "deepspeed" and self.section.deepspeed.stage == 3

    def refuse(self, section: Section, key: str, why: str, fix: str, because: str = "") -> None:
        """Notes that a key's value cannot be had; `because`: with which setting beside the strategy."""
        what = f"cannot be had with 'strategy: {self.strategy}'{because}: {why}"
        key_at(section, key, self.problems).note(what, fix, self.severity)

    # ------------------------------------------------------------------------------------------------------- strategies

    def check_keys(self) -> None:
        for other, keys in _KEYS.items():
            for key in keys:
                asked = self.section.deepspeed != DeepSpeedConfig() if key == "deepspeed" else chosen(self.section, key)
                if other == self.strategy or not asked:
                    continue
                if key in _NUMERIC:
                    self.refuse(self.section, key, f"it is for '{other}'", f"remove it, or take 'strategy: {other}'")
                else:
                    what = f"has no effect with 'strategy: {self.strategy}': it is for '{other}'"
                    key_at(self.section, key, self.problems).note(what, "remove it", "warning")

    def check_ddp(self) -> None:
        train = self.train
        if train.micro_batch_size == "auto":
            meeting = self._meeting()
            if meeting is not None:
                why = "in the forward pass processes wait for one another, where one without memory cannot tell the others"
                self.refuse(train, "micro_batch_size", why, "write a number", f" and {meeting}")
        if self.section.static_graph:
            cut = train.mega_batch_factor > 1 or train.micro_batch_size is not None
            if cut or train.noise_scale is not None:
                what = "micro-batches" if cut else "train.noise_scale"
                why = "torch counts gradients in every backward pass then, and loses count where some do not travel"
                self.refuse(self.section, "static_graph", why, "remove it", f" and {what}")

    def check_fsdp(self) -> None:
        self._check_whole()
        if self.config.eval.tile == "auto" and not self.section.gather_for_evaluation:
            why = "processes that evaluate block by block must cut alike"
            self.refuse(self.config.eval, "tile", why, "write a number", " and 'gather_for_evaluation: false'")
        if self.section.gather_dtype == "bf16" and self.config.precision == "fp32":
            why = "weights of 16 bits do not go with inputs of 32"
            self.refuse(self.section, "gather_dtype", why, "write 'precision: bf16' (or auto), too", " and 'precision: fp32'")
        if self.train.noise_scale is not None and self._one_micro_batch():
            why = "no process has the gradient of its own part, so that the first micro-batch is compared with the whole batch"
            self.refuse(self.train, "noise_scale", why, "write 'train.mega_batch_factor: 2' or more", " and one micro-batch")
        for step in self.config.steps.values():
            if optimizer_class(step.optimizer or "") in _BY_PART:
                self.refuse(step, "optimizer", "torch cannot update parts of weights by it", "take another one, or 'ddp'")

    def check_deepspeed(self) -> None:
        config = self.config
        self._check_whole()
        if self.train.noise_scale is not None:
            self.refuse(self.train, "noise_scale", "no process has the gradient of a part of the batch", "take 'ddp' or 'fsdp'")
        if config.precision == "fp16":
            self.refuse(config, "precision", "losses are not scaled there", "take bf16")
        for step in config.steps.values():
            health = step.health or self.train.health
            if health.spike != "off":
                self.refuse(health, "spike", "DeepSpeed makes updates by itself", "write 'spike: \"off\"'")
            name = optimizer_class(step.optimizer or "")
            if name is not None and name not in BY_NUMBER:
                fix = f"take one of: {', '.join(sorted(BY_NUMBER))}; all can be had with 'ddp'"
                self.refuse(step, "optimizer", "it updates flat pieces of parameters", fix)
        for name in self._trained():
            network = config.networks.get(name)
            if network is None:
                continue
            if network.freeze:
                self.refuse(network, "freeze", "DeepSpeed updates what has no gradient, too", "take 'ddp' or 'fsdp'")
            found = facts(network, []).entry
            if found is not None and found.attributes.get("needs_first_batch"):
                why = "first weights of its layers follow from the first batch, of which DeepSpeed's masters would not learn"
                self.refuse(network, network.NAME_KEYS[0], why, "take 'ddp'")
        zero = self.section.deepspeed
        if zero.offload_param and not self.stage3:
            note = key_at(zero, "offload_param", self.problems).note
            note("only stage 3 cuts up weights", "write 'stage: 3', too", self.severity)
        for name, step in config.steps.items() if "train" in config.datasets else ():
            try:
                deepspeed_json(config, name, step.clip_grad_eps, None)
            except ConfigurationError as error:
                key = "options" if str(error).startswith("distributed.deepspeed.options") else "config"
                what = str(error).removeprefix(f"distributed.deepspeed.{key}: ")
                key_at(zero, key, self.problems).note(what, severity=self.severity)
        if self.stage3:
            self._check_stage3()

    # -------------------------------------------------------------------------------------------------- in several of them

    def _check_whole(self) -> None:
        """What needs all weights and gradients in each process."""
        train, config = self.train, self.config
        if train.micro_batch_size == "auto":
            why = "processes cannot try again alone when memory runs out"
            self.refuse(train, "micro_batch_size", why, "write a number, or take 'ddp'")
        if train.batch_size_optimizer is not None:
            why = "no process has the gradients that it would gather"
            self.refuse(train, "batch_size_optimizer", why, "remove it, or take 'ddp'")
        if config.compile:
            self.refuse(config, "compile", "its networks are cut up", "leave one of them out")
        if chosen(train.crash_bundles, "count") and train.crash_bundles.count:
            what = f"has no effect with 'strategy: {self.strategy}': no process has all that a bundle must hold"
            key_at(train.crash_bundles, "count", self.problems).note(what, "remove it", "warning")

    def _check_stage3(self) -> None:
        config, stage = self.config, " and stage 3"
        fix = "take 'deepspeed: {stage: 2}' or 'strategy: fsdp'"
        if config.eval.tile == "auto":
            self.refuse(config.eval, "tile", "processes must cut alike", "write a number", stage)
        trained = self._trained()
        for name, method, injector in called_methods(config):
            if name in trained:
                why = f"it calls {method} of {name}, and weights come together for `forward` only"
                self.refuse(injector, "method", why, fix, stage)
        for step in config.steps.values():
            if step.balance is not None:
                why = "it goes back through a network twice"
                self.refuse(step, "balance", why, "take 'deepspeed: {stage: 2}'", stage)
            for injector in (step.injectors or {}).values():
                if self._averages(injector) and not injector.eval:
                    why = "it calls a network with its averaged weights, of which each process has a part"
                    self.refuse(injector, injector.NAME_KEYS[0], why, fix, stage)
            for loss in (step.losses or {}).values():
                key = self._second_order(loss)
                if key is not None:
                    why = "weights are given back after each pass, so that gradients of gradients do not find them"
                    self.refuse(loss, key, why, fix, stage)

    def check_meetings(self) -> None:
        """Warns where less is compared than in a whole batch."""
        meeting = self._meeting() if not self.section.sync_batchnorm else None
        count = self.train.micro_batches(self.config.datasets["train"].batch_size) if "train" in self.config.datasets else 1
        if meeting is not None and count > 1:
            key = "mega_batch_factor" if self.train.mega_batch_factor > 1 else "micro_batch_size"
            what = (
                f"{meeting} brings together what processes have, and not micro-batches: less is compared than in a whole batch"
            )
            key_at(self.train, key, self.problems).note(what, "use more processes in place of micro-batches", "warning")

    # ------------------------------------------------------------------------------------------------------------ questions

    def _meeting(self) -> str | None:
        """Where processes wait for one another in a forward pass, in words."""
        if self.section.sync_batchnorm:
            return "distributed.sync_batchnorm"
        sections = [each for step in self.config.steps.values() for each in (step.injectors or {}).values()]
        networks = [self.config.networks[name] for name in self._trained() if name in self.config.networks]
        for section in (*sections, *networks):
            found = facts(section, []).entry
            if found is not None and found.attributes.get("brings_together"):
                return f"'{found.name}' ({section.yaml_path})"
        return None

    def _trained(self) -> list[str]:
        return [name for step in self.config.steps.values() for name in step.trained]

    def _one_micro_batch(self) -> bool:
        """Whether a batch is one micro-batch, with however many processes."""
        dataset = self.config.datasets.get("train")
        return dataset is not None and self.train.micro_batches(dataset.batch_size) == 1

    @staticmethod
    def _averages(injector: InjectorConfig) -> bool:
        found = facts(injector, []).entry
        asked = found.attributes.get("averages") if found is not None else None
        return asked is not None and all(option(injector, name) == value for name, value in asked)

    @staticmethod
    def _second_order(loss: LossConfig) -> str | None:
        """The option that asks for gradients of gradients, or `type` where the loss always takes them."""
        found = facts(loss, []).entry
        asked = found.attributes.get("second_order") if found is not None else None
        if asked is None:
            return None
        return next((name for name in asked if option(loss, name)), None) if asked else "type"
