"""Every key of DL-Art-School's files: none is unknown, none is ignored; and the table in the documentation."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlas.config import check, load
from dlas.config.legacy.vocabulary import KEYS, PARTS, Key, key_tables
from dlas.config.schema import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs/from_dl_art_school.md"

BASE = """\
name: older
model: extensibletrainer
scale: 2
datasets:
  train: {mode: builtin_photos, batch_size: 2, target_size: 32}
networks:
  generator: {type: generator, which_model_G: RRDBNet, nf: 8, nb: 1}
  judge: {type: discriminator, which_model_D: discriminator_vgg_128_gn, nf: 8, image_size: 32}
steps:
  judge:
    training: judge
    optimizer_params: {lr: 1e-4}
    injectors:
      fake: {type: generator, generator: generator, in: lq, out: fake, no_grad: true}
    losses:
      gan: {type: discriminator_gan, gan_type: gan, weight: 1, real: hq, fake: fake}
  generator:
    training: generator
    optimizer: adamw
    optimizer_params: {lr: 1e-4}
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, weight: 1, criterion: l1, real: hq, fake: gen}
train:
  niter: 500
eval:
  injectors:
    gen: {type: generator, generator: generator, in: lq, out: gen}
"""

# What stands for `*` in the table's paths.
NAMES = {"datasets": "train", "networks": "generator", "steps": "generator", "injectors": "gen", "losses": "pix"}


def concrete(key: Key) -> list[str]:
    parts = key.path.split(".")
    pairs = zip(["", *parts[:-1]], parts, strict=True)
    named = [NAMES[before] if part == "*" else part.replace("*", "generator") for before, part in pairs]
    if key.path == "networks.*.scale":
        named[1] = "judge"
    return named


def write(folder: Path, key: Key | None = None, value: Any = None, text: str = BASE) -> Path:
    tree = yaml.safe_load(text.replace("1e-4", "0.0001"))
    if key is not None:
        *parents, last = concrete(key)
        holder = tree
        for name in parents:
            holder = holder.setdefault(name, {})
        holder[last] = value
        if last.startswith("min_tile") or last in ("tile_scale_normal_stddev",):
            holder["mode"] = "fullimage"
        if key.path.startswith("steps.*.") and last in ("lr", "weight_decay", "beta1", "beta2"):
            holder["optimizer_params"] = {"lr": 1e-4} if last != "lr" else {}
    path = folder / "file.yml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def about(key: Key, path: Path) -> list[tuple[str, str]]:
    """Severity and message of what is said of a key."""
    where = ".".join(concrete(key))
    return [(p.severity, p.message) for p in check(path, mode="train") if p.path.startswith(where)]


def changing(fate: str) -> list[Any]:
    return [pytest.param(key, id=key.path) for key in KEYS if key.fate == fate]


def test_the_base_is_right(tmp_path):
    assert [p for p in check(write(tmp_path)) if p.severity == "error"] == []


def test_no_key_is_listed_twice():
    paths = [key.path for key in KEYS]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("key", changing("supported"))
def test_a_supported_key_is_in_the_schema(key):
    section: Any = SECTIONS["Config"]
    for part in key.path.split("."):
        if part == "*":
            continue
        if part in ("args", "which_model_G") and part in (*section.NESTED, *section.NAME_KEYS):
            return
        own = {f.name: str(f.type) for f in fields(section)}
        assert part in own, f"{key.path}: {section.__name__} has no key '{part}'"
        inner = re.search(r"(\w+Config)", own[part])
        section = SECTIONS[inner[1]] if inner else section
    assert key.action is None


@pytest.mark.parametrize("key", changing("dropped"))
def test_a_dropped_key_is_said_to_have_no_effect(key, tmp_path):
    said = about(key, write(tmp_path, key, key.example))
    assert [severity for severity, _ in said] == ["notice"]
    assert said[0][1] == f"has no effect: {key.words}"


@pytest.mark.parametrize("key", changing("refused"))
def test_a_refused_key_is_an_error_with_the_reason(key, tmp_path):
    said = about(key, write(tmp_path, key, key.example))
    assert [severity for severity, _ in said] == ["error"], said
    reason = said[0][1].partition(" is not supported: ")[2]
    assert reason
    assert key.words.startswith(reason)
    assert "unknown key" not in said[0][1]


@pytest.mark.parametrize("key", [p for p in changing("refused") if "Dropped where" in p.values[0].words])
def test_a_value_that_asks_for_nothing_is_dropped(key, tmp_path):
    for text in re.findall(r"`([^`]*)`", key.words.partition("Dropped where")[2].partition(":")[0]):
        value = yaml.safe_load(text)
        said = about(key, write(tmp_path, key, value))
        assert [severity for severity, _ in said] == ["notice"], (value, said)


@pytest.mark.parametrize("key", changing("translated"))
def test_a_translated_key_gives_a_notice_and_no_error_of_its_own(key, tmp_path):
    if key.path in ("datasets.*.use_flip", "datasets.*.use_rot"):  # options of other data sets, too
        return
    if key.path.startswith("train.") and "option of `train.lr_scheme`" in key.words:
        assert "belongs to a schedule, and none is named" in about(key, write(tmp_path, key, key.example))[0][1]
        return
    said = about(key, write(tmp_path, key, key.example))
    if key.path != "path.resume_state":  # of which only one kind of value is treated
        assert "notice" in {severity for severity, _ in said}
    assert not [message for severity, message in said if severity == "error" and "unknown" in message]


def loaded(folder: Path, before: str, after: str, text: str = BASE):
    assert before in text
    path = folder / "file.yml"
    path.write_text(text.replace(before, after))
    return load(path)


def test_gates_of_an_optimizer_become_gates_of_the_losses(tmp_path):
    config = loaded(tmp_path, "optimizer: adamw\n    optimizer_params: {lr: 1e-4}",
                    "optimizer_params: {lr: 1e-4, after: 10, before: 20}")  # fmt: skip
    loss = config.steps["generator"].losses["pix"]
    assert (loss.after, loss.before) == (10, 21)  # the older span includes its last step
    assert config.steps["generator"].optimizer_params == {"lr": 1e-4}
    assert config.steps["judge"].losses["gan"].after == 0


def test_a_later_gate_of_a_loss_stays(tmp_path):
    text = BASE.replace("weight: 1, criterion", "after: 30, weight: 1, criterion")
    config = loaded(tmp_path, "nf: 8, nb: 1}", "nf: 8, nb: 1, after: 10}", text)
    assert config.steps["generator"].losses["pix"].after == 30
    assert loaded(tmp_path, "nf: 8, nb: 1}", "nf: 8, nb: 1, after: 10}").steps["generator"].losses["pix"].after == 10


def test_before_includes_its_step_in_older_files_only(tmp_path):
    text = BASE.replace("    training: generator", "    before: 7\n    training: generator")
    assert loaded(tmp_path, "name", "name", text).steps["generator"].before == 8
    assert loaded(tmp_path, "model: extensibletrainer\n", "", text).steps["generator"].before == 7


def test_an_option_of_another_schedule_has_no_effect_and_is_said_so(tmp_path):
    scheme = "niter: 500\n  default_lr_scheme: MultiStepLR\n  gen_lr_steps: [5]\n  lr_gamma: 0.5\n  eta_min: 0.1"
    config = loaded(tmp_path, "niter: 500", scheme)
    assert config.train.lr_scheme.options == {"gen_lr_steps": [5], "lr_gamma": 0.5}
    assert any("the schedule MultiStepLR does not read it" in str(p) for p in config.notices)
    path = tmp_path / "file.yml"
    path.write_text(path.read_text().replace("MultiStepLR", "ProgressiveMultiStepLR"))
    assert any("'ProgressiveMultiStepLR' is not supported" in p.message for p in check(path))


def test_megasamples_become_iterations(tmp_path):
    config = loaded(tmp_path, "niter: 500", "niter: 500\n  val_freq_megasamples: 0.001")
    assert config.train.val_freq == 500  # a thousand samples in batches of two


def test_of_an_older_key_and_ours_the_command_line_wins(tmp_path):
    path = tmp_path / "file.yml"
    path.write_text(BASE + "fp16: true\nuse_tb_logger: true\n")
    config = load(path, ["precision=bf16", "use_tb_logger=false"])
    assert (config.precision, config.logger.tensorboard) == ("bf16", False)
    path.write_text(BASE + "precision: bf16\n")
    assert load(path, ["fp16=true"]).precision == "fp16"
    path.write_text(BASE + "precision: bf16\nfp16: true\n")
    assert any("keep 'precision'" in str(p) for p in check(path))


def test_the_guide_holds_the_vocabulary():
    text = GUIDE.read_text()
    begin, end = "<!-- keys: begin -->\n", "<!-- keys: end -->"
    assert text[text.index(begin) + len(begin) : text.index(end)].strip() == key_tables().strip()
    for title in PARTS:
        assert f"### {title}\n" in text
