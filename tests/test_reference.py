"""Listings, the generated reference and the JSON schema: complete, up to date, and of one mind with the checker."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dlas.cli.main import main
from dlas.config import check
from dlas.config.schema import SECTIONS, Section, opt
from dlas.config.source import Mark, parse_yaml, plain
from dlas.config.typespec import _NAMED, INVALID, Cursor, parse_type
from dlas.explain import json_schema
from dlas.explain.catalogue import KINDS, documentation, keys_of, options_of, section_places, shipped, source_of
from dlas.explain.docstrings import parse_docstring
from dlas.explain.examples import example
from dlas.explain.json_types import NAMED, json_type
from dlas.explain.reference import REFERENCE_FOLDER, SCHEMA_FILE, generated_files
from dlas.registry import ARCHS, DATASETS, INJECTORS, LOSSES, METRICS, OPTIMIZERS, SCHEDULES

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = [(kind, registry, entry) for kind, registry in KINDS.items() for entry in shipped(registry).values()]
IDS = [f"{kind}-{entry.name}" for kind, _, entry in COMPONENTS]
SCHEMA = json_schema.json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


# ----------------------------------------------------------------------------------------------------------------- docstrings


def test_docstrings_are_read_in_their_parts():
    parsed = parse_docstring(
        """A summary that
        takes two lines.

        More, about `x`:
        a paragraph.

        Args:
            in_: the input, (B, C),
                which goes on here: with a colon.
            lr (float): a rate.

                After an empty line.
            *rest: others.

        Returns:
            Something.

        Source: Someone et al., 2020,
        equation 3.

        Example:
            in: lq
            deep: {a: 1}
        """
    )
    assert parsed.summary == "A summary that takes two lines."
    assert parsed.body == "More, about `x`:\na paragraph."
    assert parsed.arguments == {
        "in": "the input, (B, C), which goes on here: with a colon.",
        "lr": "a rate. After an empty line.",
        "rest": "others.",
    }
    assert parsed.source == "Someone et al., 2020, equation 3."
    assert parsed.example == "in: lq\ndeep: {a: 1}"
    assert parse_docstring("").summary == ""


@pytest.mark.parametrize(("kind", "registry", "entry"), COMPONENTS, ids=IDS)
def test_every_component_and_option_has_a_meaning(kind, registry, entry):
    assert documentation(entry).summary
    for option in options_of(entry):
        assert option.meaning, f"'{option.name}' has no meaning in the Args section"
        assert option.type_words != "a value" or option.annotation in ("Any", "object"), option


def test_every_key_of_a_section_has_a_meaning_and_every_section_a_place():
    assert {place.cls for place in section_places().values()} == set(SECTIONS.values())
    for place in section_places().values():
        assert place.cls.__doc__
        for option in keys_of(place.cls):
            assert option.meaning, f"{place.name}.{option.name}"


def test_networks_optimizers_and_schedules_cite_their_papers():
    for entry in shipped(ARCHS).values():
        assert "et al." in source_of(entry)
    assert "1412.6980" in source_of(OPTIMIZERS.find("adam"))
    assert "1708.07120" in source_of(SCHEDULES.find("one_cycle"))


@pytest.mark.parametrize(("kind", "registry", "entry"), COMPONENTS, ids=IDS)
def test_examples_can_be_built(kind, registry, entry):
    text = example(entry, registry)
    tree, problems = parse_yaml(text, "example")
    assert problems == []
    assert entry.name in text
    if registry not in (INJECTORS, LOSSES, SCHEDULES):
        return
    options: Any = plain(tree)
    for _ in range(2):
        (options,) = options.values()
    options = {key: value for key, value in options.items() if key not in ("type", "weight")}
    if entry.parameter("total_steps"):  # filled in from the length of the run
        options["total_steps"] = 10
    registry.create(entry.name, options)


# ------------------------------------------------------------------------------------------------------------------- listings


def printed(capsys, *arguments: str) -> str:
    assert main(["list", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", [*KINDS, "sections"])
def test_a_listing_has_one_aligned_line_each(kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = printed(capsys, kind).splitlines()
    names = section_places() if kind == "sections" else KINDS[kind].entries()
    assert len(lines) == len(names)
    assert all(len(line) <= 100 for line in lines)
    column = {line.index("  " + line.split("  ", 1)[1].lstrip()) for line in lines}
    assert len(column) == 1 or all(line[max(column)] == " " for line in lines)
    for name in names:
        assert any(line.startswith(name) for line in lines)


@pytest.mark.parametrize(("kind", "registry", "entry"), COMPONENTS, ids=IDS)
def test_a_component_is_listed_with_every_option_default_and_meaning(kind, registry, entry, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = printed(capsys, kind, entry.name)
    words = "".join(text.split())
    for option in options_of(entry):
        line = next(line for line in text.splitlines() if line.split("  ")[0] == option.name)
        assert option.default_words.split()[0] in line
        assert option.meaning.split()[0] in line
    assert "".join(documentation(entry).summary.split()) in words
    assert "".join(source_of(entry).split()) in words
    assert all(len(line) <= 120 for line in text.splitlines() if "scheduler: {" not in line)


def test_sections_are_found_by_name_and_by_path(capsys):
    assert "niter" in printed(capsys, "sections", "train")
    assert printed(capsys, "sections", "train.ema") == printed(capsys, "sections", "ema")
    assert main(["list", "sections", "tarin"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_listings_do_without_torch():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'codes')!r})\nfrom dlas.cli.main import main\n"
    code += "for a in (['archs', 'RRDBNet'], ['injectors'], ['sections', 'train']): main(['list', *a])\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_a_new_key_appears_by_itself(monkeypatch):
    @dataclass(kw_only=True)
    class Extended(SECTIONS["EmaConfig"]):  # type: ignore[misc]
        """Averages."""

        colour: str = opt("red", "a colour")
        mark: Any = field(default=None, metadata={"internal": True})

    assert issubclass(Extended, Section)
    option = next(option for option in keys_of(Extended) if option.name == "colour")
    assert (option.type_words, option.default_words, option.meaning) == ("text", "red", "a colour")


# ------------------------------------------------------------------------------------------------------------ generated files


def test_generated_files_are_up_to_date():
    files = generated_files()
    for path, text in files.items():
        assert (ROOT / path).is_file(), f"{path} is missing; run `dlas reference`"
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is not up to date; run `dlas reference`"
    pages = {path.relative_to(ROOT) for path in (ROOT / REFERENCE_FOLDER).glob("*")}
    assert pages == {path for path in files if path.parent == REFERENCE_FOLDER}


def test_the_command_writes_removes_and_checks(tmp_path, capsys):
    assert main(["reference", "-o", str(tmp_path), "--check"]) == 2
    assert main(["reference", "-o", str(tmp_path)]) == 0
    assert main(["reference", "-o", str(tmp_path), "--check"]) == 0
    stale = tmp_path / REFERENCE_FOLDER / "evaluators.md"
    stale.write_text("of a kind that is no more")
    (tmp_path / REFERENCE_FOLDER / "losses.md").write_text("edited by hand")
    capsys.readouterr()
    assert main(["reference", "-o", str(tmp_path), "--check"]) == 2
    complaints = capsys.readouterr().err
    assert "evaluators.md" in complaints
    assert "losses.md" in complaints
    assert main(["reference", "-o", str(tmp_path)]) == 0
    assert not stale.exists()
    assert main(["reference", "-o", str(tmp_path), "--check"]) == 0


def test_pages_name_everything_and_their_links_hold():
    files = generated_files()
    for kind, registry in KINDS.items():
        page = files[REFERENCE_FOLDER / f"{kind}.md"]
        for name, entry in shipped(registry).items():
            assert f"\n## {name}\n" in page
            assert f"({kind}.md#{name.lower()})" in files[REFERENCE_FOLDER / "index.md"]
            for option in options_of(entry):
                assert f"| `{option.name}` |" in page
    sections = files[REFERENCE_FOLDER / "sections.md"]
    for place in section_places().values():
        for option in keys_of(place.cls):
            assert f"| `{option.name}` |" in sections
    for text in files.values():
        assert "object at 0x" not in text


# ---------------------------------------------------------------------------------------------------------------- JSON schema

PROBES: list[Any] = [
    None, True, False, 0, 1, -1, 2.0, 0.5, 1.5, -0.5, "", "l1", "None", [], ["a"], [1], ["a", ["b"]],
    ["a", []], ["a", None], [{}], [""], [0.5, 1], {}, {"a": 1},
]  # fmt: skip
ANNOTATIONS = [
    *sorted(_NAMED),
    "float | None",
    "list[PositiveInt] | None",
    "str | list[str]",
    "StateIn | float | None",
    "dict[str, Any] | None",
    "dict[str, PositiveInt]",
    "Literal['l1', 'l2']",
    "Literal['l1'] | None",
    "Literal[1, 2]",
    "list[StateIn]",
    "PositiveInt | list[PositiveInt] | None",
]


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_types_are_those_of_the_checker(annotation):
    assert set(NAMED) == set(_NAMED), "dlas.explain.json_types and dlas.config.typespec must know the same names"
    validator = jsonschema.Draft202012Validator(json_type(annotation))
    spec = parse_type(annotation)
    for value in PROBES:
        cursor = Cursor(Mark(""))
        fits = spec.convert(value, cursor) is not INVALID and not cursor.problems
        assert validator.is_valid(value) == fits, f"{annotation}: {value!r}"


def test_the_schema_is_valid():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    references = set(json_schema._references(SCHEMA))
    assert references == set(SCHEMA["$defs"])


def faults(text: str) -> list[str]:
    tree, problems = parse_yaml(text, "file")
    assert problems == []
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(plain(tree))]


FILES = sorted([*(ROOT / "options").glob("*.yml"), *(ROOT / "recipes").rglob("*.yml")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT).as_posix()))
def test_shipped_files_name_the_schema_and_fit_it(path):
    text = path.read_text(encoding="utf-8")
    modeline = text.splitlines()[0]
    assert modeline.startswith("# yaml-language-server: $schema=")
    assert (path.parent / modeline.partition("$schema=")[2]).resolve() == ROOT / SCHEMA_FILE
    assert faults(text) == []


GAN = (ROOT / "options/train_gan_x.yml").read_text(encoding="utf-8")
BROKEN = {
    "unknown top-level key": ("scale: 4", "scael: 4"),
    "unknown key of a section": ("niter: 600", "niter: 600\n  nitre: 5"),
    "missing key": ("niter: 600", "mega_batch_factor: 1"),
    "missing name": ("name: train_gan_x\n", ""),
    "wrong type": ("batch_size: 8", "batch_size: eight"),
    "out of range": ("batch_size: 8", "batch_size: 0"),
    "not whole": ("batch_size: 8", "batch_size: 1.5"),
    "not of the choices": ("precision: auto", "precision: bf61"),
    "a list in place of a mapping": ("ema: {rate: 0.99}", "ema: [0.99]"),
    "a share above 1": ("ema: {rate: 0.99}", "ema: {rate: 1.5}"),
    "unknown network": ("which_model_G: RRDBNet", "which_model_G: RRDBNett"),
    "unknown option of a network": ("nb: 2", "nbb: 2"),
    "option of another network": ("image_size: 128", "image_size: 128\n    gc: 4"),
    "option of a network out of range": ("nb: 2", "nb: 0"),
    "unknown injector": ("{type: generator, generator", "{type: genrator, generator"),
    "missing option of an injector": ("in: lq, out: gen}", "in: lq}"),
    "unknown option of an injector": ("in: lq, out: gen}", "in: lq, out: gen, to: gen}"),
    "unknown loss": ("type: pix, criterion", "type: pixel, criterion"),
    "missing weight": ("criterion: l1, weight: 1,", "criterion: l1,"),
    "wrong choice in a loss": ("criterion: l1", "criterion: l3"),
    "missing option of a loss": ("type: pix, criterion: l1,", "type: pix,"),
    "unknown data set": ("mode: builtin_photos", "mode: builtin_fotos"),
    "unknown option of a data set": ("use_rot: true", "use_rotation: true"),
    "unknown option of an optimizer": ("betas: [0.9, 0.99]", "beta: [0.9, 0.99]"),
    "option of an optimizer out of range": ("lr: 5e-4", "lr: -1"),
    "missing option of an optimizer": ("{lr: 5e-4, betas: [0.9, 0.99]}", "{betas: [0.9, 0.99]}"),
    "unknown option of a schedule": ("niter: 600", "niter: 600\n  lr_scheme: {type: cosine, eta: 0}"),
    "missing option of a schedule": ("niter: 600", "niter: 600\n  lr_scheme: {type: MultiStepLR, lr_gamma: 0.5}"),
    "training nothing": ("    training: generator\n", ""),
    "a text for true or false": ("use_flip: true", 'use_flip: "true"'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_by_the_schema_and_the_checker(name, tmp_path):
    before, after = BROKEN[name]
    assert before in GAN
    text = GAN.replace(before, after, 1)
    assert faults(text), "the schema accepts it"
    path = tmp_path / "broken.yml"
    path.write_text(text)
    assert any(problem.severity == "error" for problem in check(path)), "the checker accepts it"


OLDER = """\
name: older
model: extensibletrainer
scale: 4
gpu_ids: [0]
fp16: false
use_tb_logger: true
datasets:
  train: {mode: builtin_photos, batch_size: 4}
networks:
  generator:
    which_model_G: RRDBNet
    args: {nf: 8}
steps:
  generator:
    training: generator
    lr: 1e-4
    beta1: 0.9
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
path:
  pretrain_model_generator: weights.pth
train:
  niter: 10
  manual_seed: 1
  default_lr_scheme: MultiStepLR
  gen_lr_steps: [5]
  lr_gamma: 0.5
"""


def test_older_spellings_are_accepted_and_marked_as_such(tmp_path):
    path = tmp_path / "older.yml"
    path.write_text(OLDER)
    assert [problem for problem in check(path) if problem.severity == "error"] == []
    assert faults(OLDER) == []
    assert SCHEMA["$defs"]["Config"]["properties"]["gpu_ids"]["deprecated"] is True
    assert faults(OLDER.replace("{nf: 8}", "{nff: 8}"))


EVERY_FILE = [*FILES, *sorted((ROOT / "tests").rglob("*.yml"))]


def test_the_schema_refuses_nothing_that_the_checker_accepts():
    accepted = 0
    for path in EVERY_FILE:
        mode = "test" if path.name.startswith(("eval", "test_")) else "train"
        if any(problem.severity == "error" for problem in check(path, mode=mode)):
            continue
        accepted += 1
        assert faults(path.read_text(encoding="utf-8")) == [], path
    assert accepted >= 20


def test_files_with_own_components_or_inclusions_are_not_refused_for_what_the_schema_cannot_know():
    assert faults(GAN.replace("RRDBNet", "MyNetwork"))
    assert faults("plugins: [mine.py]\n" + GAN.replace("RRDBNet", "MyNetwork")) == []
    assert faults("name: variant\ntrain: {val_freq: 3}")
    assert faults("include: base.yml\ntrain: {val_freq: 3}\nnetworks: {generator: {nf: 8}}") == []
    assert faults("include: base.yml\ntrain: {val_frequency: 3}")


def test_every_component_is_in_the_schema_with_its_options():
    for registry in (ARCHS, DATASETS, INJECTORS, LOSSES, SCHEDULES):
        for entry in shipped(registry).values():
            definition = SCHEMA["$defs"][f"{entry.kind}.{entry.name}"]
            assert definition.get("additionalProperties", True) is entry.accepts_any
            for option in options_of(entry):
                options = SCHEMA["$defs"][f"{entry.kind}.{entry.name}.options"]["properties"]
                assert definition["properties"][option.name] == {
                    "$ref": f"#/$defs/{entry.kind}.{entry.name}.options/properties/{option.name}"
                }
                assert options[option.name]["description"] == option.meaning
    metrics = SCHEMA["$defs"]["EvalConfig"]["properties"]["metrics"]["items"]["enum"]
    assert set(metrics) == set(shipped(METRICS))


def test_the_schema_is_the_same_whatever_plugins_are_loaded():
    import toys  # noqa: F401  # registers components

    assert "ToyGenerator" in ARCHS
    assert json_schema.json_schema() == SCHEMA
