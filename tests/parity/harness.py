"""Fixtures, the handlers that know how to check them, and how tests are made from the files of a folder.

A handler is a function decorated with `handles` in a module of ``kinds/``::

    @handles("golden_rrdbnet_*", cases=output_names)
    def check(fixture: Fixture, case: str) -> None: ...

It must take its numbers, sizes and configuration from the fixture alone: the same handler runs on other files of its family.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from parity.not_built_yet import NOT_BUILT_YET
from parity.weights import build_weight

DEFAULT_FOLDER = Path(__file__).resolve().parent / "fixtures"
VARIABLE = "DLAS_PARITY_DIR"

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "output": {"rtol": 1e-4, "atol": 1e-5},
    "gradient": {"rtol": 1e-3, "atol": 0.0},
    "float64": {"rtol": 1e-6, "atol": 1e-6},
    "inverse": {"rtol": 5e-4, "atol": 5e-4},
    "exact": {"rtol": 0.0, "atol": 0.0},
}
"""Fixed by the description of the fixtures (fixtures/README.md); `float64` is for losses and schedules."""

GRADIENT_ROUNDING = 1e-5
"""Share of a gradient's largest entry that its smallest ones may be off: they are what remains of long float32 sums."""


@dataclass(frozen=True)
class Fixture:
    """One ``golden_*.json`` or ``manifest_*.json`` and the tensors beside it.

    Args:
        path: the JSON file.
        group: name of its folder (``sr`` or ``tortoise``); stems are unique only within a group.
    """

    path: Path
    group: str

    @property
    def stem(self) -> str:
        """File name without its ending: ``golden_rrdbnet_x4_tiny``."""
        return self.path.stem

    @cached_property
    def json(self) -> dict[str, Any]:
        """Content of the JSON file."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Content of the safetensors file beside the JSON file: ``in.*``, ``out.*``, ``state.*``."""
        return load_file(self.path.with_suffix(".safetensors"))

    @property
    def outputs(self) -> list[str]:
        """Names of the reference outputs, without ``out.``."""
        return sorted(name.removeprefix("out.") for name in self.tensors if name.startswith("out."))

    def build_weights(self, specification: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
        """The state dict that a ``weights`` entry describes; entries that the constructor makes itself are left out.

        Raises:
            ValueError: a rule is unknown or a checksum differs.
        """
        built = {key: build_weight(key, entry, self.tensors) for key, entry in specification.items()}
        return {key: value for key, value in built.items() if value is not None}


Cases = Callable[[Fixture], Iterable[str]]
Check = Callable[[Fixture, str], None]


@dataclass(frozen=True)
class Handler:
    """Knows how to check the fixtures whose name fits one of `patterns` (and, if given, of which `when` is true)."""

    patterns: tuple[str, ...]
    cases: Cases
    when: Callable[[Fixture], bool]
    check: Check

    def fits(self, fixture: Fixture) -> bool:
        return any(name_fits(pattern, fixture) for pattern in self.patterns) and self.when(fixture)


HANDLERS: list[Handler] = []


def handles(
    *patterns: str,
    cases: Cases = lambda fixture: [""],
    when: Callable[[Fixture], bool] = lambda fixture: True,
) -> Callable[[Check], Check]:
    """Registers the function below as the check of a family of fixtures.

    Args:
        patterns: shell patterns for the file's stem; one with a slash is for group and stem (``tortoise/golden_dvae*``).
        cases: names of the separate tests to make from one file; by default one without a name.
        when: decides by the file's content where the name does not tell enough.
    """

    def decorate(check: Check) -> Check:
        HANDLERS.append(Handler(patterns, cases, when, check))
        return check

    return decorate


def name_fits(pattern: str, fixture: Fixture) -> bool:
    """Whether a pattern of `handles` or `NOT_BUILT_YET` fits the file's name."""
    return fnmatchcase(f"{fixture.group}/{fixture.stem}" if "/" in pattern else fixture.stem, pattern)


def compare(actual: Tensor, expected: Tensor, kind: str, what: str = "") -> None:
    """Fails unless shape, dtype and values agree within the tolerance for `kind`, a key of `TOLERANCES`."""
    tolerance = dict(TOLERANCES[kind])
    if kind == "gradient":
        tolerance["atol"] = GRADIENT_ROUNDING * expected.abs().max().item()
    torch.testing.assert_close(
        actual.detach(), expected, **tolerance, msg=lambda message: f"{what}: {message}" if what else message
    )


def parity_folder() -> Path:
    """The folder named by the variable `DLAS_PARITY_DIR`, by default the one inside the project."""
    return Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER)


def find_fixtures(folder: Path) -> list[Fixture]:
    """All fixtures below `folder`.

    Raises:
        FileNotFoundError: the folder does not exist, or no fixture is in it.
    """
    how = f"the variable {VARIABLE} names the folder that holds sr/ and tortoise/; without it, {DEFAULT_FOLDER} is used"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; {how}")
    paths = sorted([*folder.rglob("golden_*.json"), *folder.rglob("manifest_*.json")])
    if not paths:
        raise FileNotFoundError(f"no golden_*.json or manifest_*.json below {folder}; {how}")
    return [Fixture(path, "/".join(path.relative_to(folder).parts[:-1])) for path in paths]


def load_handlers() -> list[Handler]:
    """Imports every module of ``kinds/`` and returns what they registered."""
    kinds = importlib.import_module("parity.kinds")
    for module in pkgutil.iter_modules(kinds.__path__):
        importlib.import_module(f"parity.kinds.{module.name}")
    return HANDLERS


@dataclass(frozen=True)
class ParityTest:
    """One test made from a file: a check with its case, or why there is none (`skip` or `problem`)."""

    fixture: Fixture
    case: str = ""
    check: Check | None = None
    skip: str = ""
    problem: str = ""

    @property
    def id(self) -> str:
        return "-".join(filter(None, [self.fixture.group, self.fixture.stem, self.case]))


def make_tests(fixture: Fixture, handlers: Iterable[Handler]) -> list[ParityTest]:
    """The tests of one file: at least one, so that no file passes by silence."""
    try:
        fitting = [handler for handler in handlers if handler.fits(fixture)]
        found: dict[str, ParityTest] = {}
        for handler in fitting:
            for case in handler.cases(fixture):
                if case in found:
                    names = ", ".join(f"{handler.check.__module__}.{handler.check.__name__}" for handler in fitting)
                    return [ParityTest(fixture, problem=f"more than one handler claims '{case}' of {fixture.stem}: {names}")]
                found[case] = ParityTest(fixture, case, handler.check)
        if fitting:
            return list(found.values()) or [ParityTest(fixture, problem=f"{fixture.path} holds nothing to compare")]
    except Exception as error:
        # A damaged file is one failing test, not a collection that stops for all the others.
        return [ParityTest(fixture, problem=f"{fixture.path} cannot be read: {error!r}")]
    for pattern, reason in NOT_BUILT_YET.items():
        if name_fits(pattern, fixture):
            return [ParityTest(fixture, skip=f"not built yet: {reason}")]
    return [ParityTest(fixture, problem=f"no test for {fixture.path}: add a handler for this kind to {kinds_folder()}")]


def kinds_folder() -> Path:
    """Where handlers live."""
    return Path(__file__).resolve().parent / "kinds"
