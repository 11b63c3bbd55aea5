"""One mapping network that chooses for several switched convolutions of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from dlas.layers.switched.selectors import MappingNetwork

ATTRIBUTE = "switch_selector"
"""Name of the mapping network in the network, and in the names of its weights."""


class SharedSelector(MappingNetwork):
    """A mapping network whose logits are kept while the network that it belongs to runs.

    Args:
        in_channels: of the features.
        breadth: number of switches.
    """

    logits: Tensor | None = None


class _Hook:
    """Refers to the selector as an object does, so that a copy of the network has hooks that refer to its own."""

    def __init__(self, selector: SharedSelector) -> None:
        self.selector = selector


class _Look(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.selector.logits = self.selector(output)


class _Tell(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.selector.logits is None:
            raise RuntimeError("a switched layer runs before what its selector looks at: name an earlier source")
        return (args[0], self.selector.logits)


class _Forget(_Hook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.selector.logits = None


def share_selector(network: nn.Module, source: str | None, layers: Iterable[str], breadth: int) -> None:
    """Lets one mapping network choose in all layers; it looks at what one layer of the network gives.

    Args:
        network: changed in place.
        source: name of that layer, a convolution that runs before all others that are named.
        layers: names of `SwitchedConv2d` whose selector is outside.
        breadth: kernels of each.

    Raises:
        ValueError: the source is not given or not a plain convolution.
    """
    module = dict(network.named_modules()).get(source or "")
    if not isinstance(module, nn.Conv2d):
        raise ValueError(
            "selector 'shared' needs a 'source': the name of a plain convolution that runs before the switched ones; "
            f"got {source!r}"
        )
    selector = SharedSelector(module.out_channels, breadth)
    setattr(network, ATTRIBUTE, selector.to(module.weight.device, module.weight.dtype).train(network.training))
    module.register_forward_hook(_Look(selector))
    for name in layers:
        network.get_submodule(name).register_forward_pre_hook(_Tell(selector))
    network.register_forward_hook(_Forget(selector), always_call=True)


def remove_shared_selector(network: nn.Module) -> None:
    """Undoes `share_selector`, if it was done."""
    for module in network.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
                del hooks[key]
    if hasattr(network, ATTRIBUTE):
        delattr(network, ATTRIBUTE)
