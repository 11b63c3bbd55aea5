"""BasicSR's RRDBNet from its installed package (`pip install basicsr`), for side-by-side measurements."""

from __future__ import annotations

import importlib
import sys
import types

from torch import nn


def basicsr_rrdbnet(nf: int, nb: int, gc: int = 32) -> nn.Module:
    """Its x4 network.

    Raises:
        ImportError: the package is not installed.
    """
    # Its package imports every dataset and model it has, some of which need modules that newer torchvision lacks; the network
    # needs none of them.
    spec = importlib.util.find_spec("basicsr")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("basicsr is not installed")
    root = next(iter(spec.submodule_search_locations))
    for name in ("", ".archs", ".utils"):
        package = types.ModuleType(f"basicsr{name}")
        package.__path__ = [root + name.replace(".", "/")]
        sys.modules.setdefault(package.__name__, package)
    sys.modules["basicsr.utils"].get_root_logger = lambda: None  # type: ignore[attr-defined]  # of which its helpers ask the name
    network: nn.Module = importlib.import_module("basicsr.archs.rrdbnet_arch").RRDBNet(3, 3, 4, nf, nb, gc)
    return network
