"""Weights and optimiser states that DeepSpeed's ZeRO has cut up, as whole ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlas.engine.distributed.ranks import Ranks
from dlas.engine.distributed.tensors import cut_like, local, whole_like, whole_shape


def speak_of_parameters(optimizer: Optimizer, groups: list[list[nn.Parameter]], zero: Any, ranks: Ranks) -> None:
    """Lets an optimiser's state dict be that of whole parameters, as without DeepSpeed, so that any strategy can go on from it.

    Args:
        optimizer: whose parameters DeepSpeed has replaced by flat parts of them.
        groups: its parameters as they were.
        zero: DeepSpeed's optimiser around it.
        ranks: the processes; all of them must take and put back a state together. Only the first one gets it.
    """

    def state_dict() -> dict[str, Any]:
        return _whole(optimizer, groups, zero, ranks)

    def load_state_dict(state: Mapping[str, Any]) -> None:
        _cut(optimizer, groups, zero, state)

    setattr(optimizer, "state_dict", state_dict)  # noqa: B010  a method of this one object
    setattr(optimizer, "load_state_dict", load_state_dict)  # noqa: B010


def _whole(optimizer: Optimizer, groups: list[list[nn.Parameter]], zero: Any, ranks: Ranks) -> dict[str, Any]:
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(zero)
    flat, entries = next(((flat, entries) for flat, entries in optimizer.state.items() if entries), (None, {}))
    state: dict[int, dict[str, Any]] = {}
    saved_groups: list[dict[str, Any]] = []
    number = 0
    with _learning(groups):
        for group, parameters in zip(optimizer.param_groups, groups, strict=True):
            first = number
            for parameter in parameters:
                for key, value in entries.items():
                    if _of_each_number(value, flat):
                        tensor = safe_get_full_optimizer_state(parameter, key)
                        if ranks.main:
                            state.setdefault(number, {})[key] = tensor.reshape(whole_shape(parameter)).cpu()
                    elif ranks.main:
                        state.setdefault(number, {})[key] = value.clone() if isinstance(value, Tensor) else value
                number += 1
            options = {key: value for key, value in group.items() if key != "params"}
            saved_groups.append({**options, "params": list(range(first, number))})
    return {"state": state, "param_groups": saved_groups}


@torch.no_grad()
def _cut(optimizer: Optimizer, groups: list[list[nn.Parameter]], zero: Any, saved: Mapping[str, Any]) -> None:
    """Puts the parts of a whole state in their places.

    Parameters without an entry (they had no gradient yet) get zeros; DeepSpeed counts updates for all of them together, so the
    largest count stands for all.

    Raises:
        ValueError: it is the state of another number of parameters.
    """
    sizes, present = [len(group["params"]) for group in saved["param_groups"]], [len(group) for group in groups]
    if sizes != present:
        raise ValueError(f"it has groups of {sizes} parameters, and the optimiser has {present}")
    for group, given in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in given.items() if key != "params"})
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in groups for parameter in group]
    given = {id(parameter): saved["state"].get(number) or {} for number, parameter in zip(numbers, parameters, strict=True)}
    whole = {p: entries for p in parameters if (entries := given[id(p)])}
    parted, counted = _kinds(whole)
    stage3 = hasattr(parameters[0], "ds_id")
    for flat in zero.fp32_partitioned_groups_flat if stage3 else zero.single_partition_of_fp32_groups:
        entries = optimizer.state[flat]
        for value in entries.values():
            if isinstance(value, Tensor):
                value.zero_()
        for key, dtype in parted.items():
            entries.setdefault(key, torch.zeros_like(flat, dtype=dtype))
        for key, value in counted.items():
            entries[key] = value.clone() if isinstance(value, Tensor) else value
    _put(parameters, given, list(parted), zero, stage3)


def _put(parameters: list[nn.Parameter], given: Mapping[int, Any], keys: list[str], zero: Any, stage3: bool) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    _link(zero)
    with _learning([parameters]):
        for parameter in parameters:
            for key in keys:
                value = given[id(parameter)].get(key)
                if value is None:
                    continue
                if stage3:
                    safe_set_local_optimizer_state(parameter, cut_like(parameter, value), key)
                else:
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _link(zero: Any) -> None:
    """Lets parameters know their part of the optimiser's state, of every group (DeepSpeed sees to those of the first one)."""
    if hasattr(zero, "single_partition_of_fp32_groups"):
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            if zero.optimizer.state.get(flat):
                lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


def _kinds(whole: Mapping[nn.Parameter, Mapping[str, Any]]) -> tuple[dict[str, torch.dtype], dict[str, Any]]:
    """Entries with a number for each of a parameter's, by type; and the others, which are counts, by their largest value."""
    parted: dict[str, torch.dtype] = {}
    counted: dict[str, Any] = {}
    for parameter, entries in whole.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == whole_shape(parameter) and key != "step":
                parted[key] = value.dtype
            elif key not in counted or value > counted[key]:
                counted[key] = value
    return parted, counted


def _of_each_number(value: Any, flat: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == flat.shape


@contextmanager
def _learning(groups: Iterable[Iterable[nn.Parameter]]) -> Iterator[None]:
    """DeepSpeed speaks only of parameters that learn, and those of other steps are frozen while a step runs."""
    frozen = [parameter for group in groups for parameter in group if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def speak_of_whole_weights(network: nn.Module, zero: Any, ranks: Ranks) -> None:
    """Lets a network's state dict hold whole weights (on the first process; on others tensors without memory), and take them.

    Args:
        network: whose weights DeepSpeed has cut up (stage 3) or has masters of.
        zero: DeepSpeed's optimiser of the step that trains it.
        ranks: the processes; all of them must take and put back a state together.
    """
    if any(hasattr(parameter, "ds_id") for parameter in network.parameters()):
        network.register_state_dict_post_hook(_gathering(ranks))
        network.register_load_state_dict_pre_hook(_scatter)
    network.register_load_state_dict_post_hook(lambda *_: zero.refresh_fp32_params())


def _gathering(ranks: Ranks) -> Any:
    def hook(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if isinstance(state_dict.get(prefix + name), nn.Parameter) or prefix + name not in state_dict:
                continue  # asked for by `keep_vars`: whoever does wants the parameter itself
            whole = whole_like(parameter, local(parameter).detach())
            state_dict[prefix + name] = whole.cpu() if ranks.main else whole.to("meta")

    return hook


@torch.no_grad()
def _scatter(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Whole weights go into the parts; what is left for torch to copy is empty."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if prefix + name in state_dict:
            local(parameter).copy_(cut_like(parameter, state_dict[prefix + name]))
            state_dict[prefix + name] = parameter.data
