"""Reads the weights of published and own checkpoint files, and loads them into a network, all or nothing.

No file is trusted: safetensors holds no code, and PyTorch's pickles are read with ``weights_only=True``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dlas.errors import CheckpointError

CONTAINERS = ("params_ema", "params", "state_dict", "model")
"""Entries under which training programs keep the weights, the preferred first (averaged weights before plain ones)."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "net.")
"""What DistributedDataParallel, torch.compile and some training programs put before every name."""

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt")

NAMED_IN_MESSAGES = 4
"""Entries listed of each kind of mismatch."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file.

    Args:
        path: a .safetensors, .pth, .pt or .ckpt file.

    Returns:
        Tensors by name on the CPU, taken out of a training program's container, without a prefix that all names share.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint or damaged, it holds code, or it holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a checkpoint ({', '.join(ENDINGS)}) was expected. Check the path")
    start = _start_of(path)
    if path.suffix == ".safetensors":
        loaded: Any = _read_safetensors(path, start)
    elif path.suffix in ENDINGS:
        loaded = _read_pickle(path, start)
    else:
        raise CheckpointError(f"{path}: unknown kind of file '{path.suffix}'; expected one of {', '.join(ENDINGS)}")
    return _without_wrapper_prefixes(_unpack(loaded, path))


def load_into(network: nn.Module, state_dict: Mapping[str, Tensor], *, source: str, strict: bool = True) -> list[str]:
    """Loads weights into a network. If they do not fit, the network is left as it was.

    Args:
        network: its `rename_state_dict`, where it has one, translates older names first. Entries that its `constants` name are
            not read.
        state_dict: tensors by name; other floating-point types are converted.
        source: where they come from, for messages.
        strict: every entry must fit. If false, those that fit are loaded.

    Returns:
        With `strict` false, the names that were not loaded: entries of the network that kept their values, then entries of
        `state_dict` for which the network has no place. Otherwise nothing.

    Raises:
        CheckpointError: names or shapes differ (`strict`), or nothing at all fits.
    """
    own = network.state_dict()
    rename = getattr(network, "rename_state_dict", None)
    given = _with_prefix_of(own, rename(dict(state_dict)) if rename is not None else dict(state_dict))
    given = _with_constants_of(network, own, given)
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    misshapen = [name for name in own if name in given and own[name].shape != given[name].shape]
    fitting = {name: given[name] for name in own if name in given and name not in set(misshapen)}
    if (strict and (missing or unexpected or misshapen)) or not fitting:
        lines = [
            f"{source} does not fit the network {type(network).__name__}: {_likely_reason(own, given)}",
            *_listing("missing in the file", missing),
            *_listing("not in the network", unexpected),
            *_listing("of another shape", [_shapes(name, own, given) for name in misshapen]),
        ]
        raise CheckpointError("\n  ".join(lines))
    network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting] + unexpected


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise CheckpointError(f"{path}: the file is empty; a checkpoint was expected. Copy or download it again")
    if start.lstrip().startswith(b"<"):
        raise CheckpointError(
            f"{path}: this is a web page, not a checkpoint: the address it was downloaded from shows a page about the file. "
            "Download the file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: this is a Git LFS pointer, not the checkpoint. Fetch the file itself: git lfs pull")
    return start


def _read_safetensors(path: Path, start: bytes) -> dict[str, Tensor]:
    # A safetensors file starts with the length of its header in 8 bytes, which can look like anything, and then the header.
    if start[8:9] != b"{" and start.startswith((b"PK", b"\x80")):
        raise CheckpointError(f"{path}: this is a PyTorch file, although its name ends in .safetensors; rename it to .pth")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or not all of it ({path.stat().st_size} bytes: {error}). "
            "Copy or download it again"
        ) from error


def _read_pickle(path: Path, start: bytes) -> Any:
    # PyTorch writes zip archives; before version 1.6 it wrote bare pickles.
    if not start.startswith((b"PK", b"\x80")):
        raise CheckpointError(
            f"{path}: not a PyTorch checkpoint (it starts with {start[:8]!r}); expected a file written by torch.save. "
            "Check the path, or download it again"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes surface as errors of many types (RuntimeError, EOFError, struct.error, ...)
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise CheckpointError(_refusal(path, found[1])) from error
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path}: this is a TorchScript program, not weights. {_how_to_convert(path)}") from error
        raise CheckpointError(
            f"{path}: damaged or not all of it, or not a file of torch.save ({path.stat().st_size} bytes). "
            "Copy or download it again"
        ) from error


def _refusal(path: Path, object_name: str) -> str:
    return (
        f"{path}: refused, because loading it would run code from the file (it holds the Python object {object_name}; "
        f"only tensors and plain values are read). {_how_to_convert(path)}"
    )


def _how_to_convert(path: Path) -> str:
    return (
        "If you trust its origin, save its weights alone, once, where the program that wrote it is installed: "
        f"torch.save(<its state dict>, '{path.stem}_weights.pth')"
    )


def _unpack(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in CONTAINERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    expected = f"expected tensors by name, or these under one of {', '.join(CONTAINERS)}"
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}; {expected}")
    if not loaded:
        raise CheckpointError(f"{path}: holds no weights; {expected}")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: holds entries that are not tensors ({_some(others)}); {expected}")
    return {str(name): value.detach() for name, value in loaded.items()}


def _without_wrapper_prefixes(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state_dict):
            bare = {name.removeprefix(prefix): value for name, value in state_dict.items()}
            return _without_wrapper_prefixes(bare)
    return state_dict


def _with_prefix_of(own: Mapping[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undoes `_without_wrapper_prefixes` for a network whose own names all start with such a prefix."""
    for prefix in WRAPPER_PREFIXES:
        if own and all(name.startswith(prefix) for name in own) and not any(name.startswith(prefix) for name in given):
            return {prefix + name: value for name, value in given.items()}
    return given


def _with_constants_of(network: nn.Module, own: Mapping[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's own values in place of those that follow from its options."""
    pattern = getattr(network, "constants", None)
    if pattern is None:
        return given
    constants = {name: value for name, value in own.items() if re.fullmatch(pattern, name)}
    return {name: value for name, value in given.items() if not re.fullmatch(pattern, name)} | constants


def _likely_reason(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    common = [name for name in own if name in given]
    if not common:
        return "they have no name in common, so it belongs to another architecture"
    own_counts, given_counts = _numbered(own), _numbered(given)
    for group in sorted(own_counts.keys() & given_counts.keys()):
        if own_counts[group] != given_counts[group]:
            return (
                f"it has {given_counts[group]} of {group}.<i> and the network {own_counts[group]}, "
                "so the number of blocks (an option such as nb) differs"
            )
    if len(common) < max(len(own), len(given)):
        return "some layers are only in one of them, so an option that adds layers (such as scale) differs, or the architecture"
    differing = [name for name in common if own[name].shape != given[name].shape]
    if len(differing) == 1 and _differ_in_inputs_only(own[differing[0]], given[differing[0]]):
        layer = differing[0].rpartition(".")[0]
        return f"only the inputs of {layer} differ, so the input's channels or size (or the scale) differ"
    return "the layers are the same but for their sizes, so a width (an option such as nf or gc) differs"


def _differ_in_inputs_only(one: Tensor, other: Tensor) -> bool:
    return one.ndim == other.ndim >= 2 and one.shape[0] == other.shape[0] and one.shape[2:] == other.shape[2:]


def _numbered(names: Collection[str]) -> dict[str, int]:
    """`body.0.x, body.1.x` -> `{"body": 2}`: how many numbered children each group has."""
    children: dict[str, set[str]] = {}
    for name in names:
        if found := re.match(r"(.+?)\.(\d+)\.", name):
            children.setdefault(found[1], set()).add(found[2])
    return {group: len(numbers) for group, numbers in children.items()}


def _listing(what: str, items: Sequence[str]) -> list[str]:
    return [f"{what} ({len(items)}): {_some(items)}"] if items else []


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:NAMED_IN_MESSAGES]) + (", ..." if len(items) > NAMED_IN_MESSAGES else "")


def _shapes(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
