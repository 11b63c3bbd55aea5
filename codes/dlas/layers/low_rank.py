"""Low-rank adapters: a network is fine-tuned by small factors beside its frozen weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv:2106.09685), section 4.1: the weight W becomes
W + (alpha / rank) B A, where B begins at zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.gpt2 import LinearInOut
from dlas.layers.names import expression

DOWN, UP = "lora_a", "lora_b"
"""Names of the factors beside a layer's ``weight``: (rank, inputs) and (outputs, rank)."""


class _LowRank(nn.Module):
    """What the layers with an adapter have in common.

    ``weight`` is the frozen weight with the adapter's part added, for networks that read it past the layer; the frozen one
    keeps its place among the parameters, and its name. A layer that is called multiplies by the two factors in turn, which
    is cheaper, and is where dropout acts.
    """

    transposed = False  # whether the weight is (in, out)

    def _equip(self, rank: int, scaling: float, dropout: float) -> None:
        frozen = self._frozen
        outputs, inputs = frozen.shape[0], frozen[0].numel()
        if self.transposed:
            inputs, outputs = frozen.shape
        self.scaling, self.dropout = scaling, dropout
        self.lora_a = nn.Parameter(frozen.new_empty(rank, inputs))
        self.lora_b = nn.Parameter(frozen.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def _frozen(self) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:
        """The weight that acts, without dropout."""
        frozen = self._frozen
        with torch.autocast(frozen.device.type, enabled=False):  # the sum keeps the weight's precision
            product = self.scaling * (self.lora_b @ self.lora_a)
            return frozen + (product.T if self.transposed else product.view_as(frozen))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class LowRankLinear(_LowRank, nn.Linear):  # type: ignore[override]  # see `_LowRank`
    """A linear layer with an adapter."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        adapted = F.linear(F.linear(self._dropped(x), self.lora_a), self.lora_b)
        return F.linear(x, self._frozen, self.bias) + self.scaling * adapted


class LowRankLinearInOut(_LowRank, LinearInOut):  # type: ignore[misc]
    """A linear layer whose weight is (in, out), with an adapter."""

    transposed = True

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        adapted = F.linear(F.linear(self._dropped(x), self.lora_a), self.lora_b)
        return F.linear(x, self._frozen.T, self.bias) + self.scaling * adapted


class _LowRankConv(_LowRank):
    """A convolution with an adapter: A is a convolution of the same shape with `rank` outputs, B one of kernel 1."""

    groups: int
    kernel_size: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, ...) -> (B, out, ...)."""
        if self.groups > 1:  # A is that of every group
            return self._conv_forward(x, self.weight, self.bias)  # type: ignore[operator]  # of the convolution
        down = self.lora_a.unflatten(1, self._frozen.shape[1:])
        inner = self._conv_forward(self._dropped(x), down, None)  # type: ignore[operator]
        pointwise = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        adapted = pointwise(inner, self.lora_b.reshape(*self.lora_b.shape, *(1 for _ in self.kernel_size)))
        return self._conv_forward(x, self._frozen, self.bias) + self.scaling * adapted  # type: ignore[operator]


class LowRankConv1d(_LowRankConv, nn.Conv1d):  # type: ignore[override]
    """A convolution over sequences with an adapter."""


class LowRankConv2d(_LowRankConv, nn.Conv2d):  # type: ignore[override]
    """A convolution over pictures with an adapter."""


class LowRankConv3d(_LowRankConv, nn.Conv3d):  # type: ignore[override]
    """A convolution over volumes with an adapter."""


_ADAPTED: dict[type[nn.Module], type[_LowRank]] = {
    nn.Linear: LowRankLinear,
    LinearInOut: LowRankLinearInOut,
    nn.Conv1d: LowRankConv1d,
    nn.Conv2d: LowRankConv2d,
    nn.Conv3d: LowRankConv3d,
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {adapted: plain for plain, adapted in _ADAPTED.items()}


def add_adapters(
    network: nn.Module,
    rank: int = 8,
    alpha: float | None = None,
    targets: Iterable[str] = ("**",),
    dropout: float = 0.0,
    trained: Iterable[str] = (),
) -> list[str]:
    """Freezes a network and puts adapters beside some of its weights; what it computes stays as it was.

    Args:
        network: changed in place; the names of its weights stay.
        rank: of the products that are added.
        alpha: they are multiplied by alpha / rank; `rank` by default.
        targets: names of linear layers (GPT-2's too) and convolutions, as the names of weights have them, without ``.weight``;
            patterns of `names.expression`. What they match besides is passed over.
        dropout: of the input of A, in training; not where a network reads the weight past its layer, nor with groups.
        trained: patterns of names of parameters that are trained themselves, all of them.

    Returns:
        Names of the layers with an adapter, in the network's order.

    Raises:
        ValueError: a pattern matches nothing that could be meant.
    """
    modules = dict(network.named_modules())
    possible = _possible(network)
    found: set[str] = set()
    for pattern in targets:
        usable = {name for name in possible if expression(pattern).fullmatch(name)}
        if not usable:
            raise ValueError(_nothing_for(pattern, modules, possible))
        found |= usable
    parameters = dict(network.named_parameters())
    unfrozen = []
    for pattern in trained:
        matched = [parameter for name, parameter in parameters.items() if expression(pattern).fullmatch(name)]
        if not matched:
            raise ValueError(
                f"lora.trained: '{pattern}' names no parameter; they are called {', '.join(list(parameters)[:3])}, ..."
            )
        unfrozen += matched
    network.requires_grad_(False)
    names = [name for name in modules if name in found]
    for name in names:
        layer = modules[name]
        layer.__class__ = _ADAPTED[type(layer)]
        assert isinstance(layer, _LowRank)
        layer._equip(rank, (rank if alpha is None else alpha) / rank, dropout)
    for parameter in unfrozen:
        parameter.requires_grad_(True)
    return names


def adapted_layers(network: nn.Module) -> Iterator[tuple[str, _LowRank]]:
    """The layers with an adapter by their names."""
    for name, module in network.named_modules():
        if isinstance(module, _LowRank):
            yield name, module


@torch.no_grad()
def merge_adapters(network: nn.Module) -> list[str]:
    """Adds what adapters add to the weights, in place; the layers are plain again.

    Returns:
        Names of the layers, in the network's order.
    """
    layers = list(adapted_layers(network))
    for _, layer in layers:
        layer._frozen.copy_(layer.weight)
        del layer.lora_a, layer.lora_b, layer.scaling, layer.dropout
        layer.__class__ = _PLAIN[type(layer)]  # type: ignore[assignment]
    return [name for name, _ in layers]


def with_new_adapters(network: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network before it had adapters, as those of the network now: its own factors beside them.

    Weights that have factors already pass through.
    """
    layers = [(f"{name}.", layer) for name, layer in adapted_layers(network)]
    if any(f"{prefix}{DOWN}" in given for prefix, _ in layers):
        return dict(given)
    factors = {
        f"{prefix}{key}": getattr(layer, key) for prefix, layer in layers if f"{prefix}weight" in given for key in (DOWN, UP)
    }
    return {**given, **factors}


def is_of_adapter(name: str) -> bool:
    """Whether an entry of a state dict is a factor of an adapter."""
    return name.rpartition(".")[2] in (DOWN, UP)


def _possible(network: nn.Module) -> list[str]:
    """Layers that can have an adapter: of the plain kinds, with a weight that no other layer has, too."""
    holders = Counter(parameter for _, parameter in network.named_parameters(remove_duplicate=False))
    return [
        name
        for name, module in network.named_modules()
        if type(module) in _ADAPTED and isinstance(module.weight, Tensor) and holders[module.weight] == 1  # type: ignore[index]
    ]


def _nothing_for(pattern: str, modules: Mapping[str, nn.Module], possible: list[str]) -> str:
    matched = [name for name in modules if name and expression(pattern).fullmatch(name)]
    if matched:
        kinds = f"'{matched[0]}' is a {type(modules[matched[0]]).__name__}"
        return f"lora.targets: '{pattern}' names no linear layer and no convolution that can have an adapter: {kinds}"
    shown = ", ".join(possible[:8]) + (f", ... ({len(possible)})" if len(possible) > 8 else "")
    return f"lora.targets: '{pattern}' names no layer; those that can have an adapter are: {shown or 'none'}"
