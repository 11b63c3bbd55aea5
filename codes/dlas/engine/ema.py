"""Exponential moving average of a network's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dlas.engine.distributed.tensors import cut_like, kept, whole_like, whole_shape
from dlas.engine.ema_profiles import Profile, constant
from dlas.errors import CheckpointError

_LARGE = 2**20  # numbers from which a tensor is worth a kernel of its own


class _Slot(NamedTuple):
    """Where a module keeps a tensor. Buffers may be replaced by other tensors at any time, so places are remembered."""

    name: str
    holder: dict[str, Tensor | None]
    key: str

    @property
    def tensor(self) -> Tensor:
        tensor = self.holder[self.key]
        assert tensor is not None
        return kept(tensor).detach()


class ModelEma:
    """Averages of the parameters and persistent buffers of a network: ``e <- r e + (1 - r) p`` after each optimiser step.

    Floating-point entries are averaged in float32 (float64 ones in float64) whatever type the network has: in bfloat16 the
    small differences would be rounded away. Other entries (counters, masks) are copied. Tied parameters are kept once.

    Args:
        network: the network itself, not a wrapper for several processes. It is observed, never changed but by `swap_into`.
        rate: r, in [0, 1], typically 0.999; or r by the number of steps made.
        device: where the averages are; by default where the network is.

    Raises:
        ValueError: `rate` is not in [0, 1], or the network's state dict holds tensors that are none of its parameters and
            buffers, of which no average could be given.
    """

    def __init__(self, network: nn.Module, *, rate: float | Profile, device: torch.device | None = None) -> None:
        self.network = network
        self.rate: Profile = rate if callable(rate) else constant(rate)
        self._slots = _slots(network)
        self._averages = [_copy(slot.tensor, device) for slot in self._slots]
        known = self._by_tensor()
        for name, value in network.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor) and id(value) not in known:
                raise ValueError(f"'{name}' of the state dict is neither a parameter nor a buffer; its average cannot be kept")

    @torch.no_grad()
    def update(self, step: int, held: Tensor | bool = False) -> None:
        """Takes the network's present weights into the average; does not wait for the device.

        Args:
            step: number of completed optimiser steps, the one just made included.
            held: the network's update was held back, so the average stays as it is; may be a number on the device.
        """
        if held is True:
            return
        self._take(self._averages, [slot.tensor for slot in self._slots], self.rate(step), held)

    @staticmethod
    def _take(averages: list[Tensor], present: list[Tensor], rate: float, held: Tensor | bool = False) -> None:
        """Takes present values, on the averages' device, into the averages."""
        averaged, live, copied, copied_live = [], [], [], []
        for average, value in zip(averages, present, strict=True):
            if _is_averaged(average):
                averaged.append(average)
                live.append(value.to(average.dtype))
            else:
                copied.append(average)
                copied_live.append(value)
        if isinstance(held, Tensor):  # a rate on the device: multi-tensor lerp takes none
            made = held == 0
            weight = (1 - rate) * made
            small = [(a, b) for a, b in zip(averaged, live, strict=True) if a.numel() < _LARGE]
            for average, value in zip(averaged, live, strict=True):
                if average.numel() >= _LARGE:
                    torch.lerp(average, value, weight.to(average.dtype), out=average)
            if small:
                few = [average for average, _ in small]
                steps = torch._foreach_sub([value for _, value in small], few)
                torch._foreach_mul_(steps, weight)
                torch._foreach_add_(few, steps)
            _assign(copied, [torch.where(made, new, old) for new, old in zip(copied_live, copied, strict=True)])
            return
        if averaged:
            torch._foreach_lerp_(averaged, live, 1 - rate)
        _assign(copied, copied_live)

    def restart(self, tensors: Iterable[Tensor]) -> None:
        """Forgets what these of the network's parameters and buffers were before: their averages become what they are now."""
        averages = self._by_tensor()
        known = [tensor for tensor in tensors if id(tensor) in averages]
        _assign([averages[id(tensor)] for tensor in known], known)

    @contextlib.contextmanager
    def swap_into(self, network: nn.Module) -> Iterator[None]:
        """Within the context the network has the averaged weights; afterwards, also after an exception, its own bits again.

        Args:
            network: the averaged network, or another of the same structure.

        Raises:
            ValueError: the network has other parameters or buffers.
        """
        slots = _slots(network)
        if [slot.name for slot in slots] != [slot.name for slot in self._slots]:
            raise ValueError("the network to evaluate has other parameters or buffers than the one whose average was kept")
        own = [slot.holder[slot.key] for slot in slots]
        tensors = [slot.tensor for slot in slots]
        backup = [tensor.clone() for tensor in tensors]
        try:
            _assign(tensors, self._averages)
            yield
        finally:
            _assign(tensors, backup)
            for slot, tensor in zip(slots, own, strict=True):
                if slot.holder[slot.key] is not tensor:  # a forward pass has put another tensor there
                    slot.holder[slot.key] = tensor

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the places of the network's tensors, in the network's precision: for `torch.func.functional_call`."""
        return {s.name: average.to(s.tensor) for s, average in zip(self._slots, self._averages, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The averages under exactly the names of the network's own state dict, in the precision in which they are kept.

        It loads into the plain network (`load_state_dict` converts to the network's types) and loses nothing on a resume.
        Entries that are no tensors are the network's present ones.
        """
        averages = self._by_tensor()
        return {
            name: whole_like(value, averages[id(value)].clone()) if id(value) in averages else value
            for name, value in self.network.state_dict(keep_vars=True).items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`, or from the plain network's.

        Raises:
            CheckpointError: names or shapes are not those of the network.
        """
        averages = self._by_tensor()
        targets = {
            name: (value, averages[id(value)])
            for name, value in self.network.state_dict(keep_vars=True).items()
            if id(value) in averages
        }
        missing = [name for name in targets if name not in state]
        wrong = [name for name, (own, _) in targets.items() if name in state and state[name].shape != whole_shape(own)]
        if missing or wrong:
            found = f"{len(missing)} entries are missing" if missing else f"{len(wrong)} entries have another shape"
            raise CheckpointError(
                f"the averaged weights do not fit the network: {found} ({', '.join((missing or wrong)[:3])}, ...); "
                "they belong to a network with other options"
            )
        for name, (own, target) in targets.items():
            target.copy_(cut_like(own, state[name]))

    def _by_tensor(self) -> dict[int, Tensor]:
        # By identity and not by name: a network may give its entries other names in its state dict.
        live = (slot.holder[slot.key] for slot in self._slots)
        return {id(tensor): average for tensor, average in zip(live, self._averages, strict=True)}


class ShardedEma(ModelEma):
    """Averages of a network that is cut up among processes; so are they."""

    @torch.no_grad()
    def run(self, *inputs: Any, **options: Any) -> Any:
        """Calls the network with its averaged weights: torch gathers what a network has, so they take the place of its own."""
        with self.swap_into(self.network):
            return self.network(*inputs, **options)


def _slots(network: nn.Module) -> list[_Slot]:
    """All parameters and persistent buffers, each tensor once."""
    slots, seen = [], set()
    for path, module in network.named_modules():
        persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for holder, keys in ((module._parameters, module._parameters), (module._buffers, persistent)):
            for key in keys:
                tensor = holder[key]
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    slots.append(_Slot(f"{path}.{key}" if path else key, holder, key))
    return slots


@torch.no_grad()
def _assign(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):  # sharded tensors have no multi-tensor copy
        target.copy_(source)


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _copy(tensor: Tensor, device: torch.device | None) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32) if _is_averaged(tensor) else tensor.dtype
    return tensor.to(device or tensor.device, dtype, copy=True)
