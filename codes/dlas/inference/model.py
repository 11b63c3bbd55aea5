"""Networks from whatever holds one: a checkpoint file of a known family, a training run, a released file, a pair of ncnn's."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dlas.archs import LORA_KEY, SWITCHED_KEY, create_network
from dlas.engine import checkpoint
from dlas.engine.passes.tiling import input_multiple, tile_grid
from dlas.errors import CheckpointError, ConfigurationError
from dlas.interop.ncnn import read_ncnn
from dlas.interop.recognise import recognise
from dlas.interop.state_dicts import load_into, read_state_dict
from dlas.layers.padding import pad_to_multiple
from dlas.registry import ARCHS

OPTIONS_KEY = "dlas.network"
"""Entry of a released file's metadata that holds the network's options as JSON."""

_RESOLVED = "config.resolved.yml"
_INPUT_CHANNELS = ("in_nc", "num_in_ch", "in_chans", "in_ch")


@dataclass(frozen=True)
class Found:
    """A network that was found, not yet built.

    Args:
        options: of `create_network`.
        weights: tensors by name.
        source: where they come from, for messages.
        resize: factor by which the network's result is resized at the end.
        run: folder of the training run they belong to, if they do.
    """

    options: dict[str, Any]
    weights: dict[str, Tensor]
    source: str
    resize: float = 1.0
    run: Path | None = None

    def build(self) -> nn.Module:
        """The network with its weights, for evaluation."""
        network = create_network(self.options)
        load_into(network, self.weights, source=self.source)
        return network.eval().requires_grad_(False)


class Model(nn.Module):
    """A network that takes pictures of any size, and what is known of it.

    Args:
        found: the network.

    Attributes:
        network: the network.
        channels: of the input.
        grid: tiles begin at multiples of it, so that windows lie as they do in the whole picture.
        scale: enlargement.

    Raises:
        CheckpointError: the weights do not fit, or the network makes no pictures of pictures.
    """

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.source = found.source
        self.options = found.options
        self.resize = found.resize
        self.network = found.build()
        self.channels = next((int(found.options[key]) for key in _INPUT_CHANNELS if key in found.options), 3)
        self.multiple = input_multiple(self.network)
        self.grid = tile_grid(self.network)
        self.scale: float = math.inf  # until it is measured on a picture that fits without padding
        side = max(2 * self.grid, 16)
        try:
            with torch.no_grad():
                self.scale = self(torch.rand(1, self.channels, side, side)).shape[-1] / side
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{found.source}: the network makes no pictures of pictures: {error}") from error

    @property
    def title(self) -> str:
        """For instance `RRDBNet x4`."""
        return f"{self.options.get('which_model', type(self.network).__name__)} x{self.scale:g}"

    def forward(self, x: Tensor) -> Tensor:
        """(1, channels, height, width) in [0, 1] -> (1, channels, height * scale, width * scale), not clamped."""
        height, width = x.shape[-2:]
        output = self.network(pad_to_multiple(x, self.multiple) if self.multiple > 1 else x)
        picture: Tensor = output[0] if isinstance(output, tuple) else output
        if self.resize != 1:
            picture = F.interpolate(picture, scale_factor=self.resize, mode="bilinear", align_corners=False)
        if self.multiple > 1 and self.scale < math.inf:
            picture = picture[..., : _scaled(height, self.scale), : _scaled(width, self.scale)]
        return picture


def _scaled(length: int, scale: float) -> int:
    # Lengths are symbols while a network is exported, and those cannot be rounded.
    return length * int(scale) if scale == int(scale) else round(length * scale)


def find(path: str | Path, network: str | None = None) -> Found:
    """What is at a path.

    Args:
        path: a checkpoint file (.pth, .safetensors, ...), a `.param` or `.bin` file of ncnn, the folder of a training run, or
            one of its checkpoints.
        network: which network of a run, where it has several that make pictures.

    Raises:
        CheckpointError: there is nothing, it is damaged, or it is not known what network it is.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _in_run(path, network)
    if path.suffix.lower() == ".param" or (path.suffix.lower() == ".bin" and path.with_suffix(".param").is_file()):
        read = read_ncnn(path)
        return Found(read.options, read.state_dict, str(path), read.resize)
    weights = read_state_dict(path)
    options = _released_options(path) if path.suffix.lower() == ".safetensors" else None
    if options is not None:
        return Found(options, weights, str(path))
    run = _run_of(path.parent)
    if run is not None and (name := path.name.removesuffix(".safetensors").removesuffix(".ema")) in (nets := _networks_of(run)):
        return Found(nets[name], weights, str(path), run=run)
    return Found(recognise(weights, str(path)), weights, str(path))


def _released_options(path: Path) -> dict[str, Any] | None:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(OPTIONS_KEY)
        options = None if text is None else json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: what it says of its network cannot be read: {error}") from error
    return options if isinstance(options, dict) else None


def _in_run(path: Path, network: str | None) -> Found:
    run = _run_of(path)
    if run is None:
        raise CheckpointError(
            f"{path}: neither the folder of a training run (it has no {_RESOLVED}) nor one of its checkpoints; "
            "name a checkpoint file"
        )
    folder = checkpoint.named(run / "checkpoints", "latest") if path.resolve() == run.resolve() else path
    fault = checkpoint.find_fault(folder)
    if fault:
        raise CheckpointError(f"checkpoint {folder}: {fault}")
    networks = _networks_of(run)
    files = checkpoint.tensor_files(folder)
    there = {name: file for name in networks if (file := _file_of(files, name)) is not None}
    usable = [network] if network else ([name for name in there if networks[name].get("type") == "generator"] or [*there])
    if len(usable) != 1 or usable[0] not in there:
        raise CheckpointError(
            f"{folder} has the networks {', '.join(there) or 'none'}; name one that makes pictures: --network"
        )
    file = there[usable[0]]
    return Found(networks[usable[0]], checkpoint.load_tensors(folder, file), str(folder / file), run=run)


def _file_of(files: Collection[str], name: str) -> str | None:
    """Averaged weights before plain ones."""
    return next((file for file in (f"{name}.ema.safetensors", f"{name}.safetensors") if file in files), None)


def _run_of(folder: Path) -> Path | None:
    return next((each for each in (folder, folder.parent.parent) if (each / _RESOLVED).is_file()), None)


def _networks_of(run: Path) -> dict[str, dict[str, Any]]:
    """Options of each network, with the run's scale for those that take one."""
    file = run / _RESOLVED
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        sections: Mapping[str, Mapping[str, Any]] = tree["networks"]
        found = {}
        for name, section in sections.items():
            options = dict(section)
            options["which_model"] = options.get("which_model") or options.get("which_model_G")
            entry = ARCHS.find(options["which_model"])
            if entry.parameter("scale") is not None and "scale" in tree:
                options.setdefault("scale", tree["scale"])
            found[name] = options
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read as the configuration of a run: {error!r}") from error
    except ConfigurationError as error:
        raise CheckpointError(f"{file}: {error}. Networks of plug-ins need the plug-in's file") from error
    return found


def network_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that build the network, without what is for the trainer."""
    trainers = {"type", "trainable", "freeze", "fresh", "after", "before", "device"}
    trainers |= {key for key in options if key not in _known(options)}
    changes = {key: options[key] for key in (SWITCHED_KEY, LORA_KEY) if options.get(key)}
    own = {key: value for key, value in options.items() if key == "which_model" or key not in trainers}
    return {key: value for key, value in own.items() if key not in (SWITCHED_KEY, LORA_KEY)} | changes


def _known(options: Mapping[str, Any]) -> set[str]:
    entry = ARCHS.find(str(options["which_model"]))
    return set(options) if entry.accepts_any else {parameter.name.rstrip("_") for parameter in entry.parameters}
