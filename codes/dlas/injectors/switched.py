"""Running networks with switched convolutions: their temperature, what their gates do, and pictures of it."""

from __future__ import annotations

import colorsys
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.context import Context
from dlas.errors import TrainingError
from dlas.host import constant
from dlas.injectors.base import Injector, State
from dlas.injectors.networks import GeneratorInjector
from dlas.layers.switched import Routed, set_temperature, watched
from dlas.registry import INJECTORS
from dlas.types import NetworkName, PositiveInt, StateIn, StateIns, StateOut, StateOuts


@INJECTORS.register("switched_generator")
class SwitchedGeneratorInjector(Injector):
    """Runs a network with switched convolutions, and tells what its gates do.

    Logs over all layers: `switches_in_use`, the mean number of kernels in use (exp of the entropy of how often each is chosen),
    `switches_in_use_least`, that of the layer with the fewest, and `switches_certainty`, the mean share of the largest at each
    place.

    Args:
        generator: the network to run.
        in_: positional arguments, as of `generator`.
        out: key for the result, or a list of keys.
        switches: what the gates did, for `switch_balance`, `switch_load` and `switch_maps`.
        temperature: key of a number, as `scheduled_scalar` writes it, that divides the gates' logits from now on; not given:
            the temperature stays as it is.

    Example:
        generator: generator
        in: hq
        out: gen
        switches: switches
    """

    def __init__(
        self,
        *,
        generator: NetworkName,
        in_: StateIns,
        out: StateOuts,
        switches: StateOut,
        temperature: StateIn | None = None,
    ) -> None:
        self.network, self.switches, self.temperature = generator, switches, temperature
        self.run = GeneratorInjector(generator=generator, in_=in_, out=out)

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        network = context.network(self.network)
        if self.temperature is not None:
            set_temperature(network, float(state[self.temperature]))
        with watched(network) as routed:
            result = self.run(state, context)
        if not routed:
            raise TrainingError(
                f"network '{self.network}' has no switched convolutions: name some under networks.{self.network}.switched, "
                "or run it by the injector 'generator'"
            )
        for name, value in _figures(routed.values()).items():
            context.log(f"switches_{name}", value, len(context.positions))
        return {**result, self.switches: {name: each._asdict() for name, each in routed.items()}}


@INJECTORS.register("switch_maps")
class SwitchMapsInjector(Injector):
    """Pictures of which kernel acts where: for `logger.visuals`, which are in TensorBoard too.

    One picture a sample: the layers from left to right, in the order in which the network runs them, all at the same height.
    Each kernel has a colour; where several act, they are mixed.

    Args:
        in_: what `switched_generator` wrote under its `switches`.
        out: key for the pictures, (B, 3, height, ...), in [0, 1].
        height: of the pictures in pixels.
    """

    detaches = True

    def __init__(self, *, in_: StateIn, out: StateOut, height: PositiveInt = 64) -> None:
        self.source, self.out, self.height = in_, out, height

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        return {self.out: torch.cat([self._picture(layer["chosen"]) for layer in state[self.source].values()], dim=3)}

    def _picture(self, chosen: Tensor) -> Tensor:
        chosen = chosen.detach().float()
        _, breadth, height, width = chosen.shape
        palette = [colorsys.hsv_to_rgb(number / breadth, 0.85, 1.0 if number % 2 else 0.7) for number in range(breadth)]
        colours = constant(palette, chosen.device)
        picture = torch.einsum("bshw,sc->bchw", chosen / chosen.sum(dim=1, keepdim=True), colours)
        return F.interpolate(picture, size=(self.height, max(1, round(self.height * width / height))), mode="nearest")


def _figures(routed: Collection[Routed]) -> dict[str, Tensor]:
    """Figures over layers, scalars."""
    usage = [each.chosen.detach().float().mean(dim=(0, 2, 3)) for each in routed]
    in_use = torch.stack([torch.special.entr(each / each.sum()).sum().exp() for each in usage])
    certainty = torch.stack([each.shares.detach().float().amax(dim=1).mean() for each in routed])
    return {"in_use": in_use.mean(), "in_use_least": in_use.min(), "certainty": certainty.mean()}
