"""RRDBNet of other programs for side-by-side measurements, each from its own files.

These programs import all their networks, data sets and models at once, with what these need. Here a network's file is imported
by itself: the packages that it stands in are empty ones, and of what it imports only that remains which it uses.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

from peers import older_torchvision
from torch import nn

FOLDERS = {"basicsr": "BasicSR", "redux": "traiNNer-redux", "neosr": "neosr"}
"""Where `git clone` puts each."""


def available(folder: Path | None) -> list[str]:
    """Which of these programs can be measured.

    Args:
        folder: with clones of them; BasicSR may be an installed package instead.
    """
    found = [peer for peer, name in FOLDERS.items() if folder is not None and (folder / name).is_dir()]
    if "basicsr" not in found and importlib.util.find_spec("basicsr"):
        found.insert(0, "basicsr")
    return found


def rrdbnet(peer: str, folder: Path | None, nf: int, nb: int) -> nn.Module:
    """The x4 network of a program, `nf` wide with `nb` blocks and a growth of 32 channels.

    Raises:
        ImportError: the program is not there, or what its network needs is not installed.
    """
    if peer != "neosr":
        older_torchvision.prepare()
    return {"basicsr": _basicsr, "redux": _redux, "neosr": _neosr}[peer](folder, nf, nb)


def _basicsr(folder: Path | None, nf: int, nb: int) -> nn.Module:
    if folder is not None and (folder / FOLDERS["basicsr"]).is_dir():
        root = folder / FOLDERS["basicsr"] / "basicsr"
    else:
        spec = importlib.util.find_spec("basicsr")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("basicsr is neither installed nor in the folder of peers")
        root = Path(next(iter(spec.submodule_search_locations)))
    _empty_packages("basicsr", root, ("archs", "utils"))
    sys.modules["basicsr.utils"].get_root_logger = lambda: None  # type: ignore[attr-defined]  # of which its helpers ask the name
    return _class("basicsr.archs.rrdbnet_arch", "RRDBNet")(3, 3, 4, nf, nb, 32)


def _redux(folder: Path | None, nf: int, nb: int) -> nn.Module:
    assert folder is not None
    _empty_packages("traiNNer", folder / FOLDERS["redux"] / "traiNNer", ("archs", "utils"))
    make = _class("traiNNer.archs.rrdbnet_arch", "esrgan")
    return make(scale=4, use_pixel_unshuffle=False, num_filters=nf, num_blocks=nb)


def _neosr(folder: Path | None, nf: int, nb: int) -> nn.Module:
    assert folder is not None
    _empty_packages("neosr", folder / FOLDERS["neosr"] / "neosr", ("archs", "utils"))
    helpers = types.ModuleType("neosr.archs.arch_util")
    helpers.net_opt = lambda: (4, True)  # type: ignore[attr-defined]  # it reads the scale from the command line's file of options
    sys.modules.setdefault(helpers.__name__, helpers)
    return _class("neosr.archs.esrgan_arch", "esrgan")(num_feat=nf, num_block=nb, num_grow_ch=32)


def _empty_packages(name: str, root: Path, subpackages: tuple[str, ...]) -> None:
    for package, path in {name: root, **{f"{name}.{each}": root / each for each in subpackages}}.items():
        module = types.ModuleType(package)
        module.__path__ = [str(path)]
        sys.modules.setdefault(package, module)


def _class(module: str, name: str) -> Callable[..., nn.Module]:
    found: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    return found
