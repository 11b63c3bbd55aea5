"""Optimisers and learning-rate schedules of torch, read from its source text: names and options without importing torch.

What is registered in the project comes first; these are the classes that a file may also name. Where torch is not installed, or
its files are laid out in another way, nothing is known here and a name is judged when it is built.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path

from dlas.registry import Entry, Parameter, entry_of_class

# What these are made of (functions, other schedulers, a validation metric, a loss to call again) cannot be written in a file.
NOT_CONFIGURABLE = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau", "LBFGS"}


@cache
def _folder() -> Path | None:
    spec = importlib.util.find_spec("torch")  # finds the package without importing it
    folder = Path(spec.origin).parent / "optim" if spec is not None and spec.origin else None
    return folder if folder is not None and (folder / "__init__.py").is_file() else None


@cache
def optimizer_files() -> dict[str, Path]:
    """Classes of `torch.optim` and the files that define them; empty if torch is not there."""
    folder = _folder()
    if folder is None:
        return {}
    found: dict[str, Path] = {}
    for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torch.optim."):
            file = folder / (node.module.rpartition(".")[2] + ".py")
            found |= {alias.name: file for alias in node.names if alias.name[0].isupper() and alias.name != "Optimizer"}
    return found


@cache
def schedule_names() -> tuple[str, ...]:
    """Classes of `torch.optim.lr_scheduler` that a file can configure; empty if torch is not there."""
    folder = _folder()
    if folder is None:
        return ()
    tree = ast.parse((folder / "lr_scheduler.py").read_text(encoding="utf-8"))
    names = [
        node.name for node in tree.body if isinstance(node, ast.ClassDef) and "LRScheduler" in map(ast.unparse, node.bases)
    ]
    return tuple(name for name in names if not name.startswith("_") and name not in NOT_CONFIGURABLE)


@cache
def optimizer_entry(name: str) -> Entry | None:
    """The class of `torch.optim` that `name` stands for, in any case of letters, with the options that every step adds."""
    exact = {known.lower(): known for known in optimizer_files()}.get(name.lower())
    entry = None if exact is None else entry_of_class("optimizer", exact, optimizer_files()[exact])
    if exact is None or entry is None:
        return None
    # The first takes the parameters that are optimised. Tensors cannot be written in a file.
    own = [replace(p, annotation=p.annotation.replace(" | Tensor", "")) for p in entry.parameters[1:]]
    if any(p.name == "betas" for p in own):
        own += [Parameter("beta1", "Fraction", 0.9), Parameter("beta2", "Fraction", 0.999)]
    own += [Parameter("param_groups", "dict[str, Any] | None", None), Parameter("exclude_norm_and_bias", "bool", True)]
    return Entry("optimizer", exact, "torch.optim", exact, tuple(own))


@cache
def schedule_entry(name: str) -> Entry | None:
    """The class of `torch.optim.lr_scheduler` called `name`. `total_steps` is filled in by the program."""
    folder = _folder()
    if folder is None or name not in schedule_names():
        return None
    entry = entry_of_class("schedule", name, folder / "lr_scheduler.py")
    if entry is None:
        return None
    given = [p if p.name != "total_steps" else Parameter(p.name, p.annotation, None) for p in entry.parameters[1:]]
    return Entry("schedule", name, "torch.optim.lr_scheduler", name, tuple(given))
