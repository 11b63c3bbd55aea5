"""Networks, steps and averages of a run, each built on its own, so that one fault does not hide the next."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dlas.config import Config
from dlas.config.schema import Component, NetworkConfig, StepConfig
from dlas.engine.build import build_networks
from dlas.engine.dryrun.problems import ProblemList
from dlas.engine.precision import Precision
from dlas.injectors import create_injector
from dlas.losses import create_loss
from dlas.registry import yaml_name

DEVICE = torch.device("cpu")
"""Where fake tensors say they are. Any torch can trace for this device; for CUDA it must have been built with CUDA."""


def build_fake_networks(config: Config, mode: FakeTensorMode, problems: ProblemList) -> dict[str, nn.Module]:
    """The networks, on fake tensors. Those that cannot be built are noted and left out; no weights are read."""
    networks = {}
    for name, section in config.networks.items():
        with problems.noting(section):
            networks[name] = _build(config, name, section, mode)
    return networks


def _build(config: Config, name: str, section: NetworkConfig, mode: FakeTensorMode) -> nn.Module:
    if section.lora is not None:
        section = replace(section, lora=replace(section.lora, start=None))
    alone = replace(config, networks={name: section}, path=replace(config.path, pretrain={}), checkpointing_enabled=False)
    try:
        with torch.device("meta"):
            network = build_networks(alone, torch.device("meta"), together=True)[name]
    except (RuntimeError, NotImplementedError):  # its constructor computes with values: so it must have some
        network = build_networks(alone, DEVICE, together=True)[name]
    if config.checkpointing_enabled and hasattr(network, "checkpointing"):
        network.checkpointing = True  # type: ignore[assignment]  # nn.Module's attributes are typed as tensors
    _make_fake(network, mode)
    return network


def _make_fake(network: nn.Module, mode: FakeTensorMode) -> None:
    """Puts fake tensors in place of all tensors that the network's modules hold; what was tied stays tied."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old ones too: an id is good as long as its object lives

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new: Tensor
            with torch.no_grad():
                bare = tensor.detach()
                new = FakeTensor(mode, bare, DEVICE) if bare.is_meta else mode.from_tensor(bare)
                if isinstance(tensor, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    new.__dict__.update(tensor.__dict__)  # marks such as PARAM_GROUP
            made[id(tensor)] = (tensor, new)
        return made[id(tensor)][1]

    for module in network.modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for holder in holders:
            for key, value in holder.items():
                if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
                    holder[key] = fake(value)


class FakePrecision(Precision):
    """Autocast as the run would have it, for tensors that say they are on the CPU.

    Args:
        name: precision of the file.
        cuda: imitate the autocast of CUDA, which computes more operations in float32 than that of CPUs.
        bf16: the device computes in bfloat16: what `auto` becomes. None asks this machine.
    """

    def __init__(self, name: str, *, cuda: bool, bf16: bool | None) -> None:
        if name == "auto" and bf16 is not None:
            name = "bf16" if bf16 else "fp16" if cuda else "fp32"
        super().__init__(name, DEVICE)
        if cuda and self.name != "fp32":
            plain = self.autocast
            self.autocast = lambda: _both(plain(), _Float32Functions())

    def new_scaler(self) -> None:
        """None: a scaler decides by values, and its own memory is a few bytes."""


# What CUDA's autocast computes in float32 beyond what the CPU's does. Source: torch's documentation of automatic mixed
# precision, "CUDA Ops that can autocast to float32".
# fmt: off
_FLOAT32_ON_CUDA = frozenset((
    "acos", "asin", "binary_cross_entropy_with_logits", "cosh", "cosine_embedding_loss", "cosine_similarity",
    "cross_entropy", "cumprod", "cumsum", "dist", "erfinv", "exp", "expm1", "group_norm", "hinge_embedding_loss",
    "huber_loss", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2", "log_softmax", "margin_ranking_loss",
    "mse_loss", "nll_loss", "norm", "normalize", "pow", "prod", "reciprocal", "renorm", "rsqrt", "sinh", "smooth_l1_loss",
    "soft_margin_loss", "softmax", "softmin", "softplus", "sum", "tan", "triplet_margin_loss", "__pow__", "__rpow__",
    "__rdiv__", "__rtruediv__",
))
# fmt: on


class _Float32Functions(torch.overrides.TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _FLOAT32_ON_CUDA:
            args = tuple(_widen(value) for value in args)
            kwargs = {key: _widen(value) for key, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


@contextlib.contextmanager
def _both(first: contextlib.AbstractContextManager[Any], second: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


def buildable_part(
    section: StepConfig, networks: Mapping[str, nn.Module], problems: ProblemList
) -> tuple[StepConfig | None, set[str]]:
    """What of a step can be built; its faults are noted.

    Returns:
        The step without the injectors and losses that cannot be built, or None if a network that it trains is missing; and the
        state keys that therefore nobody writes.
    """
    unwritten: set[str] = set()
    injectors, losses = {}, {}
    for name, injector in section.injectors.items():
        if _can_be_built(injector, networks, problems):
            injectors[name] = injector
        else:
            unwritten |= outputs(injector)
    for name, loss in section.losses.items():
        if _can_be_built(loss, networks, problems):
            losses[name] = loss
    if any(name not in networks for name in section.trained):
        return None, unwritten.union(*(outputs(injector) for injector in section.injectors.values()))
    return replace(section, injectors=injectors, losses=losses), unwritten


def _can_be_built(section: Component, networks: Mapping[str, nn.Module], problems: ProblemList) -> bool:
    create: Callable[[Mapping[str, Any]], Any] = create_loss if section.REGISTRY.symbol == "LOSSES" else create_injector
    with problems.noting(section) as attempt:
        create({"type": section.component, **section.options})
    missing = [name for name in _named(section, "NetworkName") if name not in networks]  # noted where they are built
    return attempt.succeeded and not missing


def outputs(section: Component) -> set[str]:
    """The state keys that an injector writes, told from its options."""
    entry = section.REGISTRY.find(section.component)
    keys = set(_named(section, "StateOut"))
    for template in entry.attributes.get("derived_outputs", ()):
        given = {yaml_name(p.name): section.options.get(yaml_name(p.name), p.default) for p in entry.parameters}
        keys.add(template.format(**given))
    return keys


def _named(section: Component, kind: str) -> Iterator[str]:
    """The texts that a section gives for options whose annotation has `kind` in it."""
    for parameter in section.REGISTRY.find(section.component).parameters:
        if kind in parameter.annotation:
            value = section.options.get(yaml_name(parameter.name), parameter.default)
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))
