"""A training run made ready for others: one file that says what it is, a page about it, and a sheet that shows what it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from dlas.config import Config, load, to_plain
from dlas.data.audit import NamedInventory
from dlas.data.images.files import write_png
from dlas.data.loader import evaluation_items
from dlas.engine.build import build_dataset
from dlas.engine.inventories import inventories
from dlas.errors import CheckpointError, UserError, printable
from dlas.inference.model import OPTIONS_KEY, Found, Model, find, network_options
from dlas.layers.resize import imresize
from dlas.observe import disk

_SHOWN = 4  # pictures on the sheet
_SIDE = 192  # of each part of the sheet
_GAP = 4
_MOST_HASHED = 16 << 30  # bytes of a data set that are read for its hash


@dataclass(frozen=True)
class Released:
    """The files that were written."""

    weights: Path
    card: Path
    sheet: Path | None


def release(
    run: Path, folder: Path, *, precision: str = "fp32", name: str | None = None, network: str | None = None
) -> Released:
    """Writes <name>.safetensors, README.md and comparison.png.

    Args:
        run: folder of a run, whose newest checkpoint is taken, or of one of its checkpoints. Averaged weights go before plain.
        folder: where to; made if it is missing. Files of these names are replaced.
        precision: of the weights, fp32 or fp16.
        name: of the file; by default the run's.
        network: which network of the run.

    Raises:
        CheckpointError: there is no run, or it has no complete checkpoint.
    """
    found = find(run, network)
    if found.run is None:
        raise CheckpointError(f"{run}: is not the folder of a training run, so it is not known how this was trained")
    config = load(found.run / "config.resolved.yml")
    step = int(Path(found.source).parent.name)
    metrics = _metrics(found.run / "metrics.jsonl", step)
    data = {each.name: _data_facts(config, each) for each in inventories(config)}
    model = Model(found)
    name = name or config.name
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        OPTIONS_KEY: json.dumps(network_options(found.options)),
        "dlas.config": json.dumps(to_plain(config)),
        "dlas.metrics": json.dumps(metrics),
        "dlas.data": json.dumps(data),
        "dlas.step": str(step),
        "dlas.weights": Path(found.source).name,
    }
    weights = folder / f"{name}.safetensors"
    save_weights(weights, model.network.state_dict(), metadata, half=precision == "fp16")
    sheet = _sheet(config, model, folder / "comparison.png")
    card = folder / "README.md"
    disk.replace_text(card, _card(name, model, config, step, metrics, data, weights, precision, sheet is not None))
    return Released(weights, card, sheet)


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], half: bool = False) -> None:
    """Writes a safetensors file with metadata, complete or not at all; with `half`, floating-point weights in 16 bits.

    Raises:
        CheckpointError: a weight is beyond the range of 16 bits.
    """
    content = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        kept = tensor.half() if half and tensor.is_floating_point() else tensor
        if bool((tensor.isfinite() & ~kept.isfinite()).any()):
            raise CheckpointError(f"'{name}' has weights beyond the range of fp16 ({float(tensor.abs().max()):.3g}); take fp32")
        content[name] = kept.clone().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.replace_text(path, save(content, {"format": "pt", **metadata}))


def interpolate(first: Found, second: Found, alpha: float, path: Path) -> None:
    """Writes the network whose weights are (1 - alpha) * first + alpha * second.

    Source: Wang et al., "ESRGAN", ECCV workshops 2018 (arXiv:1809.00219), section 3.4: between a network trained for PSNR and
    the one that was trained from it with a GAN.

    Raises:
        CheckpointError: the two are not of one architecture with the same options.
    """
    a, b = (found.build().state_dict() for found in (first, second))
    differing = sorted(a.keys() ^ b.keys()) + [name for name in a.keys() & b.keys() if a[name].shape != b[name].shape]
    if first.options["which_model"] != second.options["which_model"] or differing:
        kinds = " and ".join(f"{found.source} is {found.options['which_model']}" for found in (first, second))
        raise CheckpointError(f"these networks differ, so nothing lies between them: {kinds}; {len(differing)} weights differ")
    mixed = {name: torch.lerp(a[name], b[name], alpha) if a[name].is_floating_point() else a[name] for name in a}
    sources = {"dlas.interpolated": json.dumps({"first": first.source, "second": second.source, "alpha": alpha})}
    save_weights(path, mixed, {OPTIONS_KEY: json.dumps(network_options(first.options)), **sources})


def _metrics(file: Path, step: int) -> dict[str, dict[str, float]]:
    """Of each validation set, those of the newest validation up to a step."""
    found: dict[str, dict[str, float]] = {}
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return {}
    for row in rows:
        if row.get("phase") == "val" and row.get("step", step + 1) <= step:
            others = ("phase", "step", "samples", "seconds", "set")
            found[str(row.get("set", "val"))] = {key: value for key, value in row.items() if key not in others}
    return found


def _data_facts(config: Config, found: NamedInventory) -> dict[str, Any]:
    """What the data was, so that it can be told whether other data is the same."""
    facts: dict[str, Any] = {"mode": config.datasets[found.name].mode}
    if found.inventory is None:
        return facts if found.fault is None else {**facts, "fault": found.fault}
    files = sorted({path for item in found.inventory.items for path in item.files.values()})
    facts["items"] = len(found.inventory.items)
    try:
        sizes = {path: path.stat().st_size for path in files}
        contents = sum(sizes.values()) <= _MOST_HASHED
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.name}\0{sizes[path]}\0".encode(errors="surrogateescape"))
            if contents:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        return {**facts, "fault": disk.reason(error)}
    return {**facts, "sha256": digest.hexdigest(), "sha256_of": "names, sizes, contents" if contents else "names, sizes"}


def _sheet(config: Config, model: Model, path: Path) -> Path | None:
    """Input, bicubic enlargement, output and truth of a few pictures beside each other; None without a validation set."""
    key = next((key for key in config.datasets if key != "train"), None)
    if key is None:
        return None
    source, target, rows = config.eval.input_state, config.eval.target_state, []
    try:
        for item in evaluation_items(build_dataset(config, key), {}):
            x = item.get(source)
            if not isinstance(x, Tensor):
                return None
            truth = item.get(target)
            rows.append(_row(model, x.float(), truth.float() if isinstance(truth, Tensor) else None))
            if len(rows) == _SHOWN:
                break
    except UserError:  # the data is no longer where it was
        return None
    write_png(path, torch.cat(rows, dim=-2)[0])
    return path


def _row(model: Model, x: Tensor, truth: Tensor | None) -> Tensor:
    scale = model.scale
    side = max(int(_SIDE / scale), 1)
    height, width = x.shape[-2:]
    margin = 32  # what the network sees beyond the part that is shown
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    up, start = max(top - margin, 0) // model.grid * model.grid, max(left - margin, 0) // model.grid * model.grid
    with torch.no_grad():
        output = model(x[..., up : top + side + margin, start : left + side + margin])
    places = round((top - up) * scale), round((left - start) * scale)
    part = x[..., top : top + side, left : left + side]
    length = (round(part.shape[-2] * scale), round(part.shape[-1] * scale))
    output = output[..., places[0] : places[0] + length[0], places[1] : places[1] + length[1]]
    shown = [F.interpolate(part, length, mode="nearest"), imresize(part, size=length), output]
    if truth is not None:
        y, z = round(top * scale), round(left * scale)
        shown.append(truth[..., y : y + length[0], z : z + length[1]])
    padded = [F.pad(each.clamp(0, 1), _to_side(each), value=1.0) for each in shown]
    return torch.cat(padded, dim=-1)


def _to_side(picture: Tensor) -> Sequence[int]:
    return (0, _SIDE + _GAP - picture.shape[-1], 0, _SIDE + _GAP - picture.shape[-2])


def _card(
    name: str,
    model: Model,
    config: Config,
    step: int,
    metrics: dict[str, dict[str, float]],
    data: dict[str, dict[str, Any]],
    weights: Path,
    precision: str,
    shown: bool,
) -> str:
    count = sum(parameter.numel() for parameter in model.network.parameters())
    options = network_options(model.options)
    lines = [
        f"# {name}",
        "",
        f"{model.title}, {count:,} weights in {precision}, trained for {step:,} iterations with dlas.",
        "",
    ]
    if shown:
        lines += ["![Input, bicubic enlargement, output, truth](comparison.png)", ""]
        lines += ["*From left to right: the input, bicubic enlargement, this network, and the truth where there is one.*", ""]
    lines += ["## Use", "", "```bash", f"dlas upscale {weights.name} PICTURES -o FOLDER", "```", ""]
    lines += ["Pictures go in and come out as RGB in [0, 1]. The file's metadata holds the options of the network", ""]
    lines[-2] += f" (`{OPTIONS_KEY}`), the whole configuration (`dlas.config`), the figures and the hash of the data."
    lines += ["## Network", "", "```json", json.dumps(options, indent=1), "```", ""]
    if metrics:
        lines += ["## Figures", "", "| set | metric | value |", "|---|---|---|"]
        lines += [f"| {key} | {metric} | {value:.4f} |" for key, values in metrics.items() for metric, value in values.items()]
        lines += ["", "`bicubic_...` are those of bicubic enlargement on the same pictures.", ""]
    lines += ["## Data", "", "| set | kind | items | SHA-256 |", "|---|---|---|---|"]
    for key, facts in data.items():
        digest = f"{facts['sha256']} (of {facts['sha256_of']})" if "sha256" in facts else printable(facts.get("fault", ""))
        lines.append(f"| {key} | {facts['mode']} | {facts.get('items', '')} | {digest} |")
    lines += ["", "## Training", "", f"Losses by step: {_losses(config)}. Seed {config.seed}."]
    return "\n".join([*lines, ""])


def _losses(config: Config) -> str:
    words = []
    for key, section in config.steps.items():
        words.append(f"{key}: {', '.join(f'{name} ({loss.weight:g})' for name, loss in section.losses.items()) or 'none'}")
    return "; ".join(words)
