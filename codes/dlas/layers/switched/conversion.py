"""Switched convolutions in the place of a network's plain ones, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlas.layers.names import expression
from dlas.layers.switched.conv import Selector, SwitchedConv2d
from dlas.layers.switched.shared import ATTRIBUTE, remove_shared_selector, share_selector


def switch_convolutions(
    network: nn.Module,
    layers: Iterable[str],
    breadth: int = 8,
    *,
    selector: Selector | Literal["shared"] = "coupler",
    source: str | None = None,
    **options: Any,
) -> list[str]:
    """Puts a switched convolution in the place of each plain one that is named; what the network computes stays as it was.

    Args:
        network: changed in place; kernels and biases are copied.
        layers: names of convolutions as the names of weights have them, without ``.weight``. ``*`` stands for a part of a name
            between dots, ``**`` for any number of parts, ``?`` for a letter; what they match besides convolutions that can be
            switched is passed over.
        breadth: kernels of each.
        selector: as of `SwitchedConv2d`, or shared: one mapping network for all of them.
        source: name of the layer that a shared one looks at; `share_selector`.
        options: further ones of `SwitchedConv2d`.

    Returns:
        Names of the layers, in the network's order.

    Raises:
        ValueError: a name matches no convolution that can be switched, or there is no such source.
    """
    found: dict[str, None] = {}
    modules = dict(network.named_modules())
    for pattern in layers:
        matched = [name for name in modules if expression(pattern).fullmatch(name)]
        plain = [name for name in matched if isinstance(modules[name], nn.Conv2d)]
        usable = [name for name in plain if not why_not(modules[name])]
        if not usable:
            raise ValueError(_nothing_for(pattern, plain, modules))
        found |= dict.fromkeys(usable)
    names = [name for name in modules if name in found]
    shared = selector == "shared"
    for name in names:
        _replace(network, name, _switched(modules[name], breadth, {**options, "selector": "outside" if shared else selector}))
    if shared:
        share_selector(network, source, names, breadth)
    return names


def unswitch_convolutions(network: nn.Module, kernel: str | None = None) -> list[str]:
    """Puts a plain convolution in the place of each switched one.

    Args:
        network: changed in place.
        kernel: which one stays where a layer's kernels differ: ``most_used``, by the memory of the layer's norm; ``mean``; the
            number of one.

    Returns:
        Names of the layers, in the network's order.

    Raises:
        ValueError: kernels differ, and `kernel` is not given; or it is not one of the layer's, or the layer has no norm whose
            memory is full. The network is as it was then.
    """
    plain = {name: _plain(name, layer, kernel) for name, layer in switched_layers(network)}
    for name, module in plain.items():
        _replace(network, name, module)
    remove_shared_selector(network)
    return list(plain)


def switched_layers(network: nn.Module) -> Iterator[tuple[str, SwitchedConv2d]]:
    """The switched convolutions of a network by their names."""
    for name, module in network.named_modules():
        if isinstance(module, SwitchedConv2d):
            yield name, module


def why_not(module: nn.Module) -> str:
    """What keeps a module from being switched; empty if nothing does."""
    if not isinstance(module, nn.Conv2d):
        return f"it is a {type(module).__name__}"
    if type(module) is not nn.Conv2d:
        return f"it is a {type(module).__name__}, which does more than a plain convolution"
    height, width = module.kernel_size
    if height != width or height % 2 == 0:
        return f"its kernel is {height} x {width}, not an odd square"
    if len(set(module.stride)) > 1 or isinstance(module.padding, str) or len(set(module.padding)) > 1:
        return "its stride or padding is not one number"
    if module.groups != 1 or set(module.dilation) != {1} or module.padding_mode != "zeros":
        return "it has groups, dilation, or padding other than zeros"
    return ""


def with_copied_kernels(network: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network before its convolutions were switched, as those of the network now.

    Kernels are repeated, and what the plain layer does not have (coupler, memory of the norm) is the network's own. Entries of
    layers that are switched in `given` already pass through.
    """
    result, shared = dict(given), getattr(network, ATTRIBUTE, None)
    for name, layer in switched_layers(network):
        prefix = f"{name}." if name else ""
        kernel = result.get(f"{prefix}weight")
        if kernel is None or kernel.dim() != 4:
            continue
        result[f"{prefix}weight"] = repeated(kernel, layer.weight.shape[2])
        if layer.bias is not None and layer.bias.dim() == 2 and f"{prefix}bias" in result:
            result[f"{prefix}bias"] = result[f"{prefix}bias"].expand(len(layer.bias), -1).clone()
        result = {**layer.state_dict(prefix=prefix), **result}
        if shared is not None:
            result = {**shared.state_dict(prefix=f"{ATTRIBUTE}."), **result}
    return result


def repeated(kernel: Tensor, breadth: int) -> Tensor:
    """(out, in, k, k) -> (out, in, breadth, k, k)."""
    return kernel[:, :, None].repeat(1, 1, breadth, 1, 1)


def _switched(plain: nn.Module, breadth: int, options: Mapping[str, Any]) -> SwitchedConv2d:
    assert isinstance(plain, nn.Conv2d) and isinstance(plain.padding, tuple)
    options = {**options, **({"bias": "none"} if plain.bias is None else {})}
    layer = SwitchedConv2d(
        plain.in_channels,
        plain.out_channels,
        plain.kernel_size[0],
        breadth,
        stride=plain.stride[0],
        padding=plain.padding[0],
        **options,
    )
    with torch.no_grad():
        layer.weight.copy_(repeated(plain.weight, breadth))
        if layer.bias is not None and plain.bias is not None:
            layer.bias.copy_(plain.bias.expand_as(layer.bias))
    return layer.to(plain.weight.device, plain.weight.dtype).train(plain.training)


def _plain(name: str, layer: SwitchedConv2d, kernel: str | None) -> nn.Conv2d:
    shares = _which(name, layer, kernel).to(layer.weight)
    out_channels, in_channels, _, size, _ = layer.weight.shape
    plain = nn.Conv2d(in_channels, out_channels, size, layer.stride, layer.padding, bias=layer.bias is not None)
    plain.to(layer.weight.device, layer.weight.dtype).train(layer.training)
    with torch.no_grad():
        plain.weight.copy_(torch.einsum("oibhw,b->oihw", layer.weight, shares))
        if layer.bias is not None and plain.bias is not None:
            plain.bias.copy_(layer.bias if layer.bias.dim() == 1 else shares @ layer.bias)
    return plain


def _which(name: str, layer: SwitchedConv2d, kernel: str | None) -> Tensor:
    """How much of each kernel stays, (breadth,)."""
    breadth = layer.weight.shape[2]
    first = nn.functional.one_hot(torch.tensor(0), breadth)
    alike = bool((layer.weight == layer.weight[:, :, :1]).all())
    if alike and (layer.bias is None or layer.bias.dim() == 1 or bool((layer.bias == layer.bias[:1]).all())):
        return first
    if kernel is None:
        raise ValueError(
            f"the {breadth} kernels of '{name}' differ, so a plain convolution gives other results: "
            "say which one stays (most_used, mean or a number)"
        )
    if kernel == "mean":
        return torch.full((breadth,), 1 / breadth)
    if kernel == "most_used":
        norm = layer.gate.norm
        if norm is None or not bool(norm.accumulator_filled):
            raise ValueError(
                f"'{name}' has no norm whose memory is full, so the most used kernel is not known: give its number"
            )
        return first.roll(int(norm.accumulator.mean(dim=0).argmax()))
    if not kernel.isdecimal() or int(kernel) >= breadth:
        raise ValueError(f"'{name}' has kernels 0 to {breadth - 1}; 'most_used' and 'mean' may be said too; got {kernel!r}")
    return first.roll(int(kernel))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)


def _nothing_for(pattern: str, plain: list[str], modules: Mapping[str, nn.Module]) -> str:
    if plain:
        return f"'{plain[0]}' (for '{pattern}') cannot be switched: {why_not(modules[plain[0]])}"
    others = [name for name, module in modules.items() if not why_not(module)]
    return f"'{pattern}' names no convolution of the network; those that can be switched are: {', '.join(others) or 'none'}"
