"""Reads the weights of published and own checkpoint files, and loads them into a network, all or nothing.

No file is trusted: safetensors holds no code, and PyTorch's pickles are read with ``weights_only=True``.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dlas.errors import CheckpointError
from dlas.interop.mismatch import likely_reason, listing, shapes, some
from dlas.layers.low_rank import with_new_adapters
from dlas.layers.switched import with_copied_kernels

CONTAINERS = ("params_ema", "params", "state_dict", "model", "model_g")
"""Entries under which training programs keep the weights, the preferred first (averaged weights before plain ones)."""

GAN_ENTRIES = ("g_ema", "g", "d")
"""Networks in one file of StyleGAN2's training programs: the averaged generator, the generator and the discriminator."""

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "net.")
"""What DistributedDataParallel, torch.compile and some training programs put before every name."""

ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

_DEEPEST = 3  # levels of names at which a network is looked for in a larger program
_LOG = logging.getLogger(__name__)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file.

    Args:
        path: a .safetensors, .pth, .pt, .ckpt or .bin file.

    Returns:
        Tensors by name on the CPU, taken out of a training program's container, without a prefix that all names share.
        A container is an entry named in `CONTAINERS`, or the only entry that holds tensors by name. Of a file with the
        networks of a GAN (`GAN_ENTRIES`) all are given, each with its entry's name before its own.

    Raises:
        CheckpointError: there is no such file, it is not a checkpoint or damaged, it holds code, or it holds no weights.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if path.is_dir():
        raise CheckpointError(f"{path}: this is a folder; {_files_in(path)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a checkpoint ({', '.join(ENDINGS)}) was expected. Check the path")
    start = _start_of(path)
    if ending == ".safetensors":
        loaded: Any = _read_safetensors(path, start)
    elif ending in ENDINGS:
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
        CheckpointError: names, shapes or types differ (`strict`), nothing at all fits, or parameters are not finite.
    """
    own = network.state_dict()
    given, prefix = translated(network, own, state_dict)
    if prefix:
        _LOG.info("%s: the network's weights are those named %s*", source, prefix)
    given = _with_constants_of(network, own, given)
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    misshapen = [name for name in own if name in given and own[name].shape != given[name].shape]
    mistyped = [name for name in own if name in given and own[name].is_floating_point() > given[name].is_floating_point()]
    unfit = {*misshapen, *mistyped}
    fitting = {name: given[name] for name in own if name in given and name not in unfit}
    if (strict and (missing or unexpected or unfit)) or not fitting:
        lines = [
            f"{source} does not fit the network {type(network).__name__}: {likely_reason(own, given)}",
            *listing("missing in the file", missing),
            *listing("not in the network", unexpected),
            *listing("of another shape", [shapes(name, own, given) for name in misshapen]),
            *listing("of another type", [f"{name} {given[name].dtype} instead of {own[name].dtype}" for name in mistyped]),
        ]
        raise CheckpointError("\n  ".join(lines))
    _refuse_bad_values(network, fitting, source)
    network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting] + unexpected


def fits(network: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether `load_into` would take every entry; the network may be without memory (device "meta")."""
    own = network.state_dict()
    given, _ = translated(network, own, state_dict)
    return own.keys() == given.keys() and all(own[name].shape == given[name].shape for name in own)


def translated(
    network: nn.Module, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The entries under the network's present names; and the prefix of those taken, if they are a part of a larger program.

    Where the network has switched convolutions and the entries plain ones, each kernel is copied to all of a layer's.
    Where it has low-rank adapters and the entries none, its own stay.
    """
    older = getattr(network, "rename_state_dict", None) or dict

    def rename(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return with_new_adapters(network, with_copied_kernels(network, older(given)))

    given = _with_prefix_of(own, rename(dict(state_dict)))
    if not own.keys() & given.keys():
        return _part_of_a_whole(own, state_dict, rename) or (given, "")
    return given, ""


def _refuse_bad_values(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Of parameters only: a buffer may well hold an infinity, as masks of attention do."""
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    bad = [name for name, value in weights.items() if name in parameters and not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{source} holds weights that are not finite in {len(bad)} of {len(weights)} entries: {some(bad)}. "
            "The training that wrote it had failed by then: take an older checkpoint, or download it again"
        )


def _part_of_a_whole(
    own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], str] | None:
    """The network's entries in the weights of a program that holds it under a name: `generator.conv_first.weight`, ..."""
    prefixes = dict.fromkeys(name[: dot.end()] for name in state_dict for dot in list(re.finditer(r"\.", name))[:_DEEPEST])
    for prefix in prefixes:
        part = rename({name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)})
        if own.keys() <= part.keys():
            return part, prefix
    return None


def _files_in(folder: Path) -> str:
    files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
    return f"name one of the files in it: {some(files)}" if files else f"expected a checkpoint file ({', '.join(ENDINGS)})"


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check its permissions and the disk") from error
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is told below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes surface as errors of many types (RuntimeError, EOFError, struct.error, ...)
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise CheckpointError(_refusal(path, found[1])) from error
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"Unsupported operand (\d+)", str(error))):
            raise CheckpointError(
                f"{path}: refused: it was not written by torch.save, or holds more than tensors and plain values "
                f"(pickle instruction {found[1]}). {_how_to_convert(path)}"
            ) from error
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
    if isinstance(loaded, Mapping) and isinstance(loaded.get("g_ema"), Mapping):
        # Which of them is meant the network decides into which they are loaded; the preferred is first.
        held = {entry: loaded[entry] for entry in GAN_ENTRIES if isinstance(loaded.get(entry), Mapping)}
        loaded = {f"{entry}.{name}": value for entry, weights in held.items() for name, value in weights.items()}
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in CONTAINERS if isinstance(loaded.get(name), Mapping)), None)
        inner = _only_network(loaded, path) if inner is None else inner
        if inner is None:
            break
        loaded = inner
    expected = f"expected tensors by name, or these under one of {', '.join(CONTAINERS)}"
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}; {expected}")
    if not loaded:
        raise CheckpointError(f"{path}: holds no weights; {expected}")
    others = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others and any("optim" in name or name == "param_groups" for name in others):
        raise CheckpointError(
            f"{path}: this is the state of an optimiser or of a training run ({some(others)}), without weights; name the file "
            f"with the network's weights, which training programs write beside it. {expected[0].upper()}{expected[1:]}"
        )
    if others:
        raise CheckpointError(f"{path}: holds entries that are not tensors ({some(others)}); {expected}")
    return {str(name): _plain(str(name), value, path) for name, value in loaded.items()}


def _only_network(loaded: Mapping[Any, Any], path: Path) -> Mapping[Any, Any] | None:
    """The one entry that holds tensors by name, in a file that holds something else besides."""
    if any(isinstance(value, Tensor) for value in loaded.values()):
        return None
    found = [name for name, value in loaded.items() if _is_state_dict(value)]
    if len(found) > 1:
        raise CheckpointError(
            f"{path}: holds the weights of several networks: {some([str(name) for name in found])}. Save the one you mean: "
            f"torch.save(torch.load('{path.name}', weights_only=True)['{found[0]}'], '{path.stem}_{found[0]}.pth')"
        )
    return loaded[found[0]] if found else None


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _plain(name: str, tensor: Tensor, path: Path) -> Tensor:
    if tensor.is_meta or tensor.is_quantized:
        kind = "has no values (it was saved from the device 'meta')" if tensor.is_meta else "is quantised"
        raise CheckpointError(f"{path}: '{name}' {kind}; save plain floating-point weights")
    return tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()


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
