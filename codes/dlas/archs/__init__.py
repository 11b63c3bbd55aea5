"""Networks. One file or folder a family; importing this package imports none of them.

A network registers itself and says in the same file how it is built at a tiny size, so that the tests that run over the whole
registry cover it from its first day::

    @ARCHS.register("MyNet")
    class MyNet(nn.Module):
        def __init__(self, *, nf: PositiveInt = 64) -> None: ...

        @staticmethod
        def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
            '''Options of a network of a few thousand weights, and arguments for its `forward`.'''
            return {"nf": 8}, (torch.rand(2, 3, 16, 16),)

What the program may ask of a network besides `forward`, all optional:

* ``checkpointing: bool`` (attribute, False at first): when True, activations of a training forward
  are computed again in the backward pass.
* ``after_update()`` (method): called once after each update of its weights, however many micro-batches that took, also where
  the update was held back as a bad one: for what follows the weights, such as a moving average of them.
* ``frozen_at_first: Mapping[str, float]`` (attribute): beginnings of names of parameters, and for which share of the run these
  are not trained.
* ``brings_together = True`` (class attribute): in training processes wait for one another in its forward pass, where samples of
  all of them are compared.
* ``needs_first_batch = True`` (class attribute): its first weights, or some of them, follow from the first batch.
* ``rename_state_dict(state_dict) -> state_dict`` (static method): translates the names of older published checkpoints to the
  network's own; names it does not know pass through, and applying it twice is applying it once.
* ``constants: str`` (class attribute, a regular expression): entries of its state dict that follow from its options alone, such
  as masks for pictures of one size. They are written, for other programs, and not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dlas.errors import ConfigurationError
from dlas.registry import ARCHS

if TYPE_CHECKING:
    from torch import nn

NAME_KEYS = ("which_model", "which_model_G", "which_model_D")
"""Options of which one names the architecture."""

TRAINER_KEYS = frozenset({*NAME_KEYS, "type", "trainable", "freeze", "fresh", "after", "device"})
"""Options of an entry of `networks` that are for the trainer, not for the architecture."""

SWITCHED_KEY = "switched"
"""Option of an entry of `networks` that changes the network after it is built: its switched convolutions."""

LORA_KEY = "lora"
"""The same: its low-rank adapters."""

NESTING_KEYS = ("kwargs", "args")
"""Options that hold further options of the architecture."""


def create_network(options: Mapping[str, Any], *, name: str = "network") -> nn.Module:
    """Builds the network that an entry of `networks` describes.

    Args:
        options: the architecture's name under `which_model`, `which_model_G` or `which_model_D`, and its options, beside the
            name or nested under `kwargs` or `args`. Options for the trainer (`TRAINER_KEYS`) are passed over. Under `switched`
            arguments of `dlas.layers.switched.switch_convolutions`, under `lora` those of `dlas.layers.low_rank.add_adapters`
            (`start`, a file of weights, is passed over).
        name: the entry's name in the file, for messages.

    Returns:
        The network, freshly initialised, on the default device.

    Raises:
        ConfigurationError: no architecture is named, it does not exist, or an option is unknown, missing, given twice or
            of a value that the architecture does not take.
    """
    named = [key for key in NAME_KEYS if options.get(key) is not None]
    if len(named) != 1:
        found = "none of them is given" if not named else f"{' and '.join(named)} are given"
        raise ConfigurationError(f"networks.{name}: exactly one of {', '.join(NAME_KEYS)} names the architecture, but {found}")
    architecture = options[named[0]]
    try:
        network: nn.Module = ARCHS.create(architecture, _architecture_options(options, name))
        if options.get(SWITCHED_KEY):
            from dlas.layers.switched import switch_convolutions

            switch_convolutions(network, **options[SWITCHED_KEY])
        if options.get(LORA_KEY):
            from dlas.layers.low_rank import add_adapters

            add_adapters(network, **{key: value for key, value in options[LORA_KEY].items() if key != "start"})
        return network
    except (ConfigurationError, ValueError) as error:
        raise ConfigurationError(f"networks.{name}: {error}") from error


def _architecture_options(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = {key: value for key, value in options.items() if key not in {*TRAINER_KEYS, *NESTING_KEYS, SWITCHED_KEY, LORA_KEY}}
    for nesting in NESTING_KEYS:
        for key, value in (options.get(nesting) or {}).items():
            if key in found:
                raise ConfigurationError(f"networks.{name}: '{key}' is given twice, once of it under '{nesting}'; keep one")
            found[key] = value
    return found
