"""Weights, gradients, optimiser states and averages are cut up among the processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from dlas.config import Config
from dlas.config.wiring.spread import called_methods
from dlas.engine.distributed.buffers import BufferSharing, broadcast
from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.single import NoExchange
from dlas.engine.distributed.tensors import cut_like, whole
from dlas.errors import ConfigurationError


class FullySharded:
    """Full sharding by `torch.distributed.fsdp.fully_shard`; see `Strategy`.

    A network is gathered block by block as it runs: by all processes together, which must therefore run equally often. For an
    evaluation, in which they do not, it is gathered as a whole; or else every process evaluates the whole set.

    Args:
        config: of the run.
        device: of this process.

    Raises:
        ConfigurationError: the processes cannot be divided into groups of `shard_size`.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        assert config.train is not None, "only training is spread"
        together = config.distributed.gather_for_evaluation
        self.ranks = Ranks.current()
        self.evaluating = self.ranks if together else Ranks()
        self.whole = False
        self._methods: dict[str, set[str]] = {}
        for name, method, _ in called_methods(config):
            self._methods.setdefault(name, set()).add(method)
        self._measures_noise = config.train.noise_scale is not None
        self._mesh = _mesh(device, self.ranks.world_size, config.distributed.shard_size)
        compute = torch.bfloat16 if config.distributed.gather_dtype == "bf16" else None
        # Inputs stay what they are: a timestep in 16 bits would be another one. Autocast sees to products.
        self._policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        self._networks: Mapping[str, nn.Module] = {}
        self._buffers = BufferSharing()

    def spread(self, networks: Mapping[str, nn.Module]) -> None:
        """Cuts the networks up, repeated blocks each for itself."""
        broadcast(networks.values())
        self._networks = networks
        for name, network in networks.items():
            scalars = {each for each in network.parameters() if not each.dim()}
            for block in blocks(network):
                self._shard(block, scalars)
            self._shard(network, scalars)
            for method in self._methods.get(name, ()):
                register_fsdp_forward_method(network, method)
            network.register_load_state_dict_pre_hook(_cut_up)

    def _shard(self, module: nn.Module, scalars: set[nn.Parameter]) -> None:
        # The whole is given back after each forward pass, too: between passes everything sees the parts.
        ignored: dict[str, Any] = {"ignored_params": scalars} if scalars else {}  # torch does not cut up single numbers
        fully_shard(module, mesh=self._mesh, reshard_after_forward=True, mp_policy=self._policy, **ignored)

    def exchange(self, step: str, named: Mapping[str, nn.Parameter], optimizer: Optimizer, clip_norm: float) -> ShardedExchange:
        """Gradients are cut up and averaged by the networks themselves."""
        del step, optimizer, clip_norm
        trained = dict.fromkeys(name.split(".", 1)[0] for name in named)
        scalars = [each for each in named.values() if not each.dim()]
        return ShardedExchange([self._networks[name] for name in trained], scalars, self.ranks, self._measures_noise)

    def any_rank(self, flag: bool) -> bool:
        """The flag of this process: others wait within a backward pass for one that failed there, until it ends."""
        return flag

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """See `BufferSharing`; buffers are not cut up."""
        self._buffers.share(modules)

    def gathered(self, state: Any) -> Any:
        """Tensors are put together one by one, in the host's memory of rank 0."""
        if isinstance(state, Tensor):
            if not hasattr(state, "device_mesh"):
                return state
            tensor = whole(state.detach())
            return tensor.cpu() if self.ranks.main else state
        if isinstance(state, dict):
            return {key: self.gathered(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.gathered(value) for value in state)
        return state


class ShardedExchange(NoExchange):
    """Gradients travel at the last micro-batch only; see `GradientExchange`.

    Args:
        networks: that the step trains.
        scalars: parameters of theirs that are whole in every process.
        ranks: the processes.
        early: they also travel at the first one: somebody wants to see the gradients of all processes then.
    """

    def __init__(
        self, networks: Iterable[nn.Module], scalars: Sequence[nn.Parameter], ranks: Ranks, early: bool = False
    ) -> None:
        self._scalars = scalars
        self._ranks = ranks
        self._networks = [network for network in networks if isinstance(network, FSDPModule)]
        self._early = early
        self._first = True

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Until the last one, whole gradients are kept."""
        travels = last or (self._early and self._first)
        for network in self._networks:
            network.set_requires_gradient_sync(travels)
        self._first = False
        yield
        gradients = [each.grad for each in self._scalars if each.grad is not None] if travels else []
        if gradients:
            mean = self._ranks.mean_(torch.stack(gradients))
            for gradient, value in zip(gradients, mean, strict=True):
                gradient.copy_(value)

    def finish(self) -> None:
        """The backward pass has done it."""
        self._first = True


def _mesh(device: torch.device, world_size: int, shard_size: int | None) -> DeviceMesh:
    """All processes in a row, or groups that each hold everything: neighbours share a group, since they share a machine."""
    if shard_size is None or shard_size == world_size:
        return init_device_mesh(device.type, (world_size,))
    if world_size % shard_size:
        raise ConfigurationError(
            f"distributed.shard_size is {shard_size}, and {world_size} processes cannot be divided into groups of so many; "
            f"take a divisor of {world_size}"
        )
    names = ("replicate", "shard")
    return init_device_mesh(device.type, (world_size // shard_size, shard_size), mesh_dim_names=names)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: children of one class in a list or a sequence, unless they are single layers.

    Networks that use a parameter in several places have none: a parameter belongs to one block.
    """
    places = [id(p) for module in network.modules() for p in module.parameters(recurse=False)]
    if len(places) != len(set(places)):
        return []
    found: list[nn.Module] = []
    _find_blocks(network, found)
    return found


def _find_blocks(module: nn.Module, found: list[nn.Module]) -> None:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and _repeats(child):
            found += [each for each in child if any(True for _ in each.parameters())]
        else:
            _find_blocks(child, found)


def _repeats(container: nn.Module) -> bool:
    members = [each for each in container.children() if any(True for _ in each.parameters())]
    return len(members) > 1 and len({type(each) for each in members}) == 1 and any(True for _ in members[0].children())


def _cut_up(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Whole tensors of a state dict that is being loaded, cut up as the network's are."""
    for name, own in module.state_dict(keep_vars=True).items():
        if prefix + name in state_dict:
            state_dict[prefix + name] = cut_like(own, state_dict[prefix + name])
