"""Networks on another device than the run: their inputs are brought there, and their results back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlas.config import Config, Problem
from dlas.engine.device import choose_device
from dlas.engine.distributed.ranks import Ranks
from dlas.errors import ConfigurationError


def device_of(config: Config, name: str, home: torch.device) -> torch.device:
    """Where a network is to be.

    Args:
        config: of the run.
        name: of the network.
        home: the device of this process.

    Raises:
        ConfigurationError: there is no such device, or it is that of another process.
    """
    section = config.networks[name]
    if section.device is None:
        return home
    written = f"cuda:{section.device}" if isinstance(section.device, int) else section.device
    try:
        device = choose_device(written)
    except ConfigurationError as error:
        raise ConfigurationError(f"{section.mark}: networks.{name}.{error}") from error
    if Ranks.current().many and (section.trainable or device.type != "cpu"):
        raise ConfigurationError(
            f"{section.mark}: networks.{name}.device: {section.device}: of several processes each has one device; only frozen "
            "networks can be elsewhere, on the CPU. Leave 'device' out, or start one process"
        )
    return device


def place(network: nn.Module, device: torch.device, home: torch.device) -> None:
    """Lets whoever calls a network, or any public method that its class defines, not notice where it is.

    Tensors among the arguments go to `device`, those of the result to `home`, gradients the same ways back; autocast is on
    there as it is at home. What the network calls on itself is left alone, and so are modules in it that others call.

    Args:
        network: it is on `device` already.
        device: where it is.
        home: where everything else is.
    """
    inside = False

    def travelling(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*inputs: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*inputs, **options)
            inside = True
            try:
                with _autocast_of(home, device):
                    result = function(*_moved(inputs, device), **_moved(options, device))
            finally:
                inside = False
            return _moved(result, home)

        return call

    for name in _methods(type(network)):
        setattr(network, name, travelling(getattr(network, name)))
    network.home_device = home  # type: ignore[assignment]  # nn.Module's attributes are typed as tensors


def is_placed(network: nn.Module) -> bool:
    """Whether it is on another device than the run."""
    return hasattr(network, "home_device")


def missing_devices(config: Config) -> list[Problem]:
    """GPUs of networks that this machine does not have: errors, unless it has none at all and so is not the one to run on."""
    found: list[Problem] = []
    for name, section in config.networks.items():
        number = section.device
        if isinstance(number, str):
            number = int(number.partition(":")[2] or 0) if number.startswith("cuda") else None
        if number is not None and number >= torch.cuda.device_count():
            there = torch.cuda.device_count()
            what = f"{section.device}: this machine has {there} GPU{'s' * (there != 1)}"
            fix = "take a lower number, or cpu" if there else "it can only be looked for where the run is"
            found.append(Problem(section.mark, f"networks.{name}.device", what, fix, "error" if there else "warning"))
    return found


def _methods(kind: type) -> list[str]:
    """Public methods that a network's own classes define, `forward` among them."""
    own = {name: each for base in reversed(kind.__mro__) for name, each in vars(base).items() if base not in nn.Module.__mro__}
    return [
        name for name, each in own.items() if callable(each) and not name.startswith("_") and not hasattr(nn.Module, name)
    ] + ["forward"]


def _autocast_of(home: torch.device, device: torch.device) -> torch.autocast:
    enabled = torch.is_autocast_enabled(home.type)
    return torch.autocast(device.type, torch.get_autocast_dtype(home.type), enabled=enabled)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        # Into page-locked memory a copy would not be waited for; nothing here may read too early.
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, tuple):
        items = [_moved(each, device) for each in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _moved(getattr(value, field.name), device) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **fields)
    return value
