"""Finds operations for which the host would wait for a GPU, where there is none.

Tensors are on the device `meta`, which has no values, as a GPU has none at hand: whoever needs one (`item`, `if tensor`, a
boolean index, `tolist`, `cpu`) fails. What comes from the host must not be copied by a call that blocks, as
`torch.tensor(values, device=...)` does.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
_BUILDERS = (torch.tensor, torch.as_tensor, torch.asarray)


class WaitError(AssertionError):
    """The host would wait for the device here."""

    def __init__(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/dlas/" in f.filename]
        where = (
            f"{frames[-1].filename.rpartition('/dlas/')[2]}:{frames[-1].lineno}: {frames[-1].line}" if frames else "the test"
        )
        super().__init__(f"{what} ({where})")


class _Calls(TorchFunctionMode):
    """What Python asks for, before torch makes operations of it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _on_device(kwargs.get("device")) or any(isinstance(each, Tensor) and _on_device(each.device) for each in args):
            kwargs.pop("generator", None)
        if func in _BUILDERS and not isinstance(args[0], Tensor) and _on_device(kwargs.get("device")):
            raise WaitError(f"{func.__name__} from the host's values; dlas.host.constant does not wait")
        if func is Tensor.new_tensor and _on_device(kwargs.get("device", args[0].device)):
            raise WaitError("new_tensor from the host's values")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and _on_device(args[0].device) and _has_list(args[1]):
            raise WaitError("an index that is a list of the host")
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """The operations, those of the backward pass too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_to_copy" and args[0].is_cpu and _on_device(kwargs.get("device")) and not kwargs.get("non_blocking"):
            raise WaitError("a copy to the device without non_blocking=True")
        if name == "copy_" and _on_device(args[0].device) and args[1].is_cpu and not _flag(args, kwargs):
            raise WaitError("copy_ from the host without non_blocking=True")
        if name == "_local_scalar_dense" and _on_device(args[0].device):
            raise WaitError("a number of the device is asked for")
        if name == "_to_copy" and _on_device(args[0].device) and not _on_device(kwargs.get("device", DEVICE)):
            raise WaitError("a copy to the host")
        if name == "_linalg_check_errors":
            raise WaitError("the check of a factorisation; the function whose name ends in _ex does not wait")
        if name == "nonzero" and _on_device(args[0].device):
            raise WaitError("nonzero, or a boolean index")
        return func(*args, **kwargs)


def _flag(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))


def _on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _has_list(index: Any) -> bool:
    return isinstance(index, list) or (isinstance(index, tuple) and any(isinstance(each, list) for each in index))


class NoWaiting:
    """Context manager: inside, waiting for the device is an error."""

    def __enter__(self) -> None:
        self._modes = (_Calls(), _Operations())
        self._torch = torch.Generator, torch.autocast
        torch.Generator, torch.autocast = _Generator, _Autocast  # type: ignore[assignment,misc]
        for mode in self._modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        torch.Generator, torch.autocast = self._torch  # type: ignore[misc]


_GENERATOR, _AUTOCAST = torch.Generator, torch.autocast


class _Generator:
    """The device has none; what is drawn there has no values anyway."""

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        return _GENERATOR("cpu" if _on_device(device) else device)


class _Autocast:
    def __new__(cls, device_type: str, *options: Any, **more: Any) -> Any:
        return nullcontext() if device_type == DEVICE.type else _AUTOCAST(device_type, *options, **more)


def on_device(value: Any) -> Any:
    """Tensors, also in containers, as they would be on the device."""
    if isinstance(value, Tensor):
        return value.detach().to(DEVICE).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: on_device(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(on_device, value))
    return value
