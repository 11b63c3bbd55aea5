"""Crash bundles: everything that is needed to run a step that went wrong once more, in a folder that can be sent around.

crashes/<iteration>-<step>/
    report.txt, report.json        the diagnosis, or the traceback of an error
    config.resolved.yml            the run's configuration
    environment.json               versions, device, command
    bundle.json, batch.safetensors the batch as it was before the step: texts and numbers, and tensors
    networks/<name>.safetensors    weights of all networks
    losses.safetensors             buffers of the step's losses
    manifest.json                  size and sha256 of each of the above, as in a checkpoint

A folder appears by rename, complete or not at all. There are no pickles in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dlas.config import Config, to_yaml
from dlas.context import Context
from dlas.engine import checkpoint
from dlas.engine.diagnosis import Diagnosis, diagnose
from dlas.engine.distributed import Single, Strategy
from dlas.engine.microbatch import MicroBatch
from dlas.engine.out_of_memory import is_out_of_memory
from dlas.engine.step import TrainingStep
from dlas.errors import UserError
from dlas.observe.console import LOGGER
from dlas.observe.run_folder import environment

BUNDLE = "bundle.json"
BATCH = "batch.safetensors"
LOSSES = "losses.safetensors"
NETWORKS = "networks"
MANIFEST = "manifest.json"
FORMAT = 1


class CrashReporter:
    """Says what went wrong in a step and writes bundles. Whatever fails meanwhile is logged and does not end the run.

    Args:
        config: of the run.
        folder: of the run.
        strategy: how the run is spread over processes; a single one by default. Each process writes bundles of what it has met,
            into crashes/rank<r> if it is not the first; none does where a process does not hold all weights. Networks may wait
            for each other's processes in a forward pass, so several leave the diagnosis to `dlas replay`.
    """

    def __init__(self, config: Config, folder: Path, strategy: Strategy | None = None) -> None:
        assert config.train is not None, "only training crashes so"
        strategy = strategy or Single()
        self.config = config
        self.folder = folder / "crashes" / ("" if strategy.ranks.main else f"rank{strategy.ranks.rank}")
        self.count = config.train.crash_bundles.count if strategy.whole else 0
        self.diagnoses = not strategy.ranks.many
        self.max_mb = config.train.crash_bundles.max_mb
        self._told = False

    def report_bad_update(self, step: TrainingStep, parts: list[MicroBatch], contexts: list[Context]) -> Diagnosis | None:
        """Diagnoses an update that is not finite, logs what was found, and writes a bundle.

        Args:
            step: the step.
            parts: its micro-batches as they were before it ran.
            contexts: theirs.

        Returns:
            The diagnosis. None where it failed, where several processes train, and beyond the number of bundles that a run may
            have: a diagnosis takes long.
        """
        if self._is_full():
            return None
        diagnosis = None
        try:
            if self.diagnoses:
                diagnosis = diagnose(step, parts, contexts, written_before(self.config, step.name))
                LOGGER.warning("%s", diagnosis.text())
        except Exception as error:
            LOGGER.warning("the step that went wrong cannot be diagnosed: %s: %s", type(error).__name__, error)
        self._write(step, parts, contexts, diagnosis, None)
        return diagnosis

    def report_error(self, step: TrainingStep, parts: list[MicroBatch], contexts: list[Context], error: Exception) -> None:
        """Writes a bundle for an error that a step has raised.

        There is none for a lack of memory, which is no matter of the batch, and for mistakes in the file, which say what to do.
        """
        causes = list(_chain(error))
        is_a_mistake = isinstance(error, UserError) and len(causes) == 1
        if not is_out_of_memory(error) and not is_a_mistake and not self._is_full():
            self._write(step, parts, contexts, None, error)

    def _is_full(self) -> bool:
        full = len(bundles(self.folder)) >= self.count
        if full and self.count and not self._told:
            LOGGER.warning("%d crash bundles are in %s already; no more are written", self.count, self.folder)
            self._told = True
        return full

    def _write(
        self,
        step: TrainingStep,
        parts: list[MicroBatch],
        contexts: list[Context],
        diagnosis: Diagnosis | None,
        error: Exception | None,
    ) -> None:
        try:
            crash = Crash(self.config, step, parts, contexts, diagnosis, error)
            target = write_bundle(self.folder, crash, max_mb=self.max_mb)
        except Exception as fault:
            LOGGER.warning("no crash bundle could be written to %s: %s: %s", self.folder, type(fault).__name__, fault)
        else:
            LOGGER.warning("batch, weights and report are in %s; to run this step again: %s", target, replay_command(target))


@dataclass(frozen=True)
class Crash:
    """What a bundle is made of: a step, its micro-batches before it ran, and what is known of its fault."""

    config: Config
    step: TrainingStep
    parts: list[MicroBatch]
    contexts: list[Context]
    diagnosis: Diagnosis | None = None
    error: Exception | None = None

    @property
    def name(self) -> str:
        """Of the bundle."""
        return f"{self.contexts[0].step + 1}-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.step.name)}"


def write_bundle(folder: Path, crash: Crash, max_mb: int | None = None) -> Path:
    """Writes `folder`/<iteration>-<step>; a bundle that is there already keeps its place, and the new one gets a number.

    Args:
        folder: the run's `crashes` folder.
        crash: what to write.
        max_mb: a larger bundle goes without batch and weights, and cannot be replayed.

    Returns:
        The new folder.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [crash.name, *(f"{crash.name}.{number}" for number in range(2, 1000))]
    target = next(folder / name for name in names if not (folder / name).exists())
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _write_files(partial, target, crash, max_mb)
        files = {str(path.relative_to(partial)): _fingerprint(path) for path in sorted(partial.rglob("*")) if path.is_file()}
        _write_json(partial / MANIFEST, {"format": FORMAT, "files": files})
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _write_files(partial: Path, target: Path, crash: Crash, max_mb: int | None) -> None:
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    parts = [
        {"share": part.share, "positions": part.positions, "state": _pack_state(part.state, tensors, f"{number}", left_out)}
        for number, part in enumerate(crash.parts)
    ]
    networks = {name: dict(network.state_dict()) for name, network in crash.contexts[0].networks.items()}
    losses = {f"{each.name}.{key}": value for each in crash.step.losses for key, value in _own_state(each.loss).items()}
    size = sum(each.nbytes for group in (tensors, losses, *networks.values()) for each in group.values())
    room = shutil.disk_usage(partial).free
    too_large = ""
    if max_mb is not None and size > max_mb * 2**20:
        too_large = f"batch and weights have {size >> 20} MB, and train.crash_bundles.max_mb is {max_mb}"
    elif size + 2**24 > room:
        too_large = f"batch and weights have {size >> 20} MB, and {room >> 20} MB are free"
    if not too_large:
        _save_tensors(partial / BATCH, tensors)
        _save_tensors(partial / LOSSES, losses)
        (partial / NETWORKS).mkdir()
        for name, weights in networks.items():
            _save_tensors(partial / NETWORKS / f"{name}.safetensors", weights)
    diagnosis, error, scaler = crash.diagnosis, crash.error, crash.step.scaler
    trace = "" if error is None else "".join(traceback.format_exception(error))
    bundle = {
        "step": crash.step.name,
        "completed": crash.contexts[0].step,
        "seed": crash.contexts[0].seed,
        "device": str(crash.step.precision.device),
        "precision": crash.step.precision.name,
        "loss_scale": None if scaler is None else scaler.get_scale(),
        "error": None if error is None else f"{type(error).__name__}: {error}",
        "without_tensors": too_large,
        "left_out": left_out,
        "parts": parts,
    }
    _write_json(partial / BUNDLE, bundle)
    (partial / "config.resolved.yml").write_text(to_yaml(crash.config), encoding="utf-8")
    _write_json(partial / "environment.json", environment(str(crash.step.precision.device)))
    words = [f"run {crash.config.name}, step '{crash.step.name}', iteration {crash.contexts[0].step + 1}"]
    words += [diagnosis.text()] if diagnosis is not None else []
    words += [trace.rstrip()] if trace else []
    words += [f"without batch and weights: {too_large}"] if too_large else [f"run this step again: {replay_command(target)}"]
    (partial / "report.txt").write_text("\n\n".join(words) + "\n", encoding="utf-8")
    report = diagnosis.to_json() if diagnosis is not None else {}
    _write_json(partial / "report.json", {**report, "error": bundle["error"], "traceback": trace or None})


def bundles(folder: Path) -> list[Path]:
    """The bundles of a run's `crashes` folder."""
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def find_fault(bundle: Path) -> str | None:
    """What is wrong with a bundle's files, or None if they are complete and unchanged."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["format"], dict(manifest["files"])
    except FileNotFoundError:
        return f"{MANIFEST} is missing: this is no crash bundle, or an incomplete one"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    if version != FORMAT:
        return f"format {version} was written by another version of this program; this one reads format {FORMAT}"
    for name, expected in files.items():
        if not (bundle / name).is_file():
            return f"{name} is missing"
        if _fingerprint(bundle / name) != expected:
            return f"{name} is damaged: its size or sha256 is not the one in {MANIFEST}"
    return None


def replay_command(bundle: Path) -> str:
    """What to type to run the step of a bundle again."""
    return f"dlas replay {shlex.quote(str(bundle))}"


def written_before(config: Config, step: str) -> set[str]:
    """State keys that the injectors of the steps before this one name as their output."""
    keys: set[str] = set()
    for name, section in config.steps.items():
        if name == step:
            break
        for injector in section.injectors.values():
            out = injector.options.get("out")
            keys.update([out] if isinstance(out, str) else [key for key in out or () if isinstance(key, str)])
    return keys


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _pack_state(state: Mapping[str, Any], tensors: dict[str, Tensor], path: str, left_out: list[str]) -> Any:
    packed = []
    for key, value in state.items():
        found: dict[str, Tensor] = {}
        try:
            packed.append([key, checkpoint.pack(value, found, f"{path}/{key}")])
        except TypeError:  # an object of the data set's own
            left_out.append(key)
            continue
        tensors.update(found)
    return {"dict": packed}


def _own_state(loss: torch.nn.Module) -> dict[str, Tensor]:
    """What a loss has come by while it trained; the fixed weights of its networks are read from their file again."""
    fixed = {id(parameter) for parameter in loss.parameters() if not parameter.requires_grad}
    return {key: value for key, value in loss.state_dict(keep_vars=True).items() if id(value) not in fixed}


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Each gets bytes of its own: safetensors refuses tensors that share memory, as micro-batches of one batch do.
    save_file({key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}, path)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
