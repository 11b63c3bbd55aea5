"""Configuration files: YAML traps, positions and suggestions, overrides, includes, older spellings, plug-ins, wiring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dlas.config import check, load, source, to_plain
from dlas.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent

MINIMAL = """\
name: tiny
scale: 2
datasets:
  train:
    mode: builtin_photos
    batch_size: 2
    target_size: 32
networks:
  generator:
    which_model_G: RRDBNet
    nf: 8
    nb: 1
    gc: 4
steps:
  generator:
    training: generator
    optimizer_params: {lr: 1e-4}
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, weight: 1, criterion: l1, real: hq, fake: gen}
train:
  niter: 2
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "file.yml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def errors(path: Path, overrides=(), mode="train") -> list[str]:
    return [str(p).replace(f"{path.parent}/", "") for p in check(path, overrides, mode) if p.severity == "error"]


def test_the_minimal_file_is_right(write):
    assert errors(write(MINIMAL)) == []


def test_check_does_not_import_torch(write):
    path = write(MINIMAL)
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'codes')!r}); from dlas.config import check; check({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code + "; sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E3", -2500.0),
        ("!!float 3e-4", 3e-4),
        ("012", 12),
        ("1_000", 1000),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("None", "None"),
        (".5", 0.5),
        ("-", None),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        (".inf", float("inf")),
    ],
)
def test_scalars_mean_what_they_say(text, value):
    from dlas.config.source import parse_yaml

    tree, problems = parse_yaml(f"key: {text}\n", "f")
    if text == "-":  # a list item, not a scalar
        assert problems or isinstance(tree["key"], list)
    else:
        assert not problems
        assert tree["key"] == value
        assert type(tree["key"]) is type(value)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "niter: 2",
            "niter: 2\n  niter: 3",
            "file.yml:24:3: train.niter: the key is given twice, first in line 23; remove one",
        ),
        ("niter: 2", "nitre: 2", "file.yml:23:3: train.nitre: unknown key; did you mean 'niter'?"),
        ("niter: 2", "niter: two", "file.yml:23:10: train.niter: expected a whole number of at least 1, found the text 'two'"),
        ("niter: 2", "niter: 0", "file.yml:23:10: train.niter: expected a whole number of at least 1, found 0"),
        ("nf: 8", "nff: 8", "file.yml:11:5: networks.generator.nff: network 'RRDBNet' has no option 'nff'; did you mean 'nf'?"),
        ("nf: 8", "nf: 8.5", "file.yml:11:9: networks.generator.nf: expected a whole number of at least 1, found 8.5"),
        (
            "RRDBNet",
            "RRDBnet",
            "file.yml:10:20: networks.generator.which_model_G: no network is called 'RRDBnet'; did you mean 'RRDBNet'?",
        ),
        ("weight: 1,", "", "file.yml:21:12: steps.generator.losses.pix: the key 'weight' is missing: factor in the step's sum"),
        (
            "criterion: l1",
            "criterion: l3",
            "file.yml:21:46: steps.generator.losses.pix.criterion: expected one of l1, l2, charbonnier, huber, smooth_l1",
        ),
        (
            "training: generator",
            "training: generatr",
            "file.yml:16:15: steps.generator.training: no network is called 'generatr'; did you mean 'generator'?",
        ),
        (
            "generator: generator,",
            "generator: discriminator,",
            "steps.generator.injectors.gen.generator: no network is called 'discriminator'",
        ),
        (
            "scale: 2",
            "precision: bf32",
            "precision: expected one of fp32, bf16, fp16, auto, found the text 'bf32'",
        ),
        (
            "scale: 2",
            "deterministic: yes",
            "file.yml:2:16: deterministic: expected true or false, found the text 'yes'; write true",
        ),
        ("scale: 2", "scale: [2", "file.yml:"),
        ("scale: 2", "scale: !!python/object:os.system x", "scale: cannot be read"),
        ("mode: builtin_photos", "mode: builtin_fotos", "did you mean 'builtin_photos'?"),
    ],
)
def test_a_mistake_is_reported_where_it_stands(write, before, after, expected):
    assert before in MINIMAL
    found = errors(write(MINIMAL.replace(before, after, 1)))
    assert any(expected in each for each in found), found


def test_all_problems_come_at_once_in_the_order_of_lines(write):
    text = MINIMAL.replace("nf: 8", "nff: 8").replace("criterion: l1", "criterion: l3").replace("niter: 2", "niter: -1")
    found = errors(write(text))
    assert [int(each.split(":")[1]) for each in found] == [11, 21, 23]


def test_load_raises_with_every_problem(write):
    path = write(MINIMAL.replace("nf: 8", "nff: 8").replace("niter: 2", "niter: -1"))
    with pytest.raises(ConfigurationError, match=r"2 problems in .*\n.*nff.*\n.*niter"):
        load(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "there is no data set to train on"),
        ("- a\n- b\n", "expected a mapping of keys at the top"),
        ("a: &x [*x]\n", "this anchor contains itself"),
        ("name: \x00\n", "not valid YAML"),
    ],
)
def test_odd_files_are_reported(write, text, expected):
    found = errors(write(text))
    assert any(expected in each for each in found), found


def test_a_missing_file_is_a_problem(tmp_path):
    assert "there is no such file" in str(check(tmp_path / "nothing.yml")[0])


def test_overrides_win_and_are_checked_alike(write):
    path = write(MINIMAL)
    config = load(path, ["train.niter=7", "networks.generator.nf=16", "steps.generator.optimizer_params.lr=1e-3"])
    assert (config.train.niter, config.networks["generator"].options["nf"]) == (7, 16)
    assert config.steps["generator"].optimizer_params["lr"] == 1e-3
    assert errors(path, ["train.nitr=7"]) == ["--set train.nitr=7: train.nitr: unknown key; did you mean 'niter'?"]
    assert "expected key=value" in errors(path, ["train.niter"])[0]
    assert "holds a value, not further keys" in errors(path, ["name.x=1"])[0]


def test_include_merges_under_the_file_and_keeps_positions(write):
    write("networks:\n  generator: {nf: 32, nb: 4}\ntrain:\n  nitr: 3\n", "shared.yml")
    path = write("include: shared.yml\n" + MINIMAL)
    assert "shared.yml:4:3: train.nitr: unknown key; did you mean 'niter'?" in errors(path)
    write("networks:\n  generator: {nf: 32, additive_mode: additive}\n", "shared.yml")
    options = load(path).networks["generator"].options
    assert (options["nf"], options["additive_mode"]) == (8, "additive")
    write("include: file.yml\n", "shared.yml")
    assert any("includes itself" in each for each in errors(path))
    assert any("there is no file" in each for each in errors(write("include: none.yml\n" + MINIMAL)))


def test_anchors_and_merge_keys(write):
    text = MINIMAL.replace("    nf: 8\n    nb: 1\n", "    <<: &small {nf: 6, nb: 1}\n    nf: 8\n")
    assert load(write(text)).networks["generator"].options["nf"] == 8


def test_options_under_kwargs_are_the_same(write):
    text = MINIMAL.replace("    nf: 8\n    nb: 1\n    gc: 4\n", "    kwargs: {nf: 8, nb: 1, gcc: 4}\n")
    assert errors(write(text)) == [
        "file.yml:11:28: networks.generator.gcc: network 'RRDBNet' has no option 'gcc'; did you mean 'gc'?"
    ]


OLDER = """\
name: older
model: extensibletrainer
scale: 2
gpu_ids: [0]
fp16: true
start_step: -1
use_tb_logger: false
wandb: false
datasets:
  train: {mode: builtin_photos, batch_size: 2, target_size: 32}
  val: {mode: builtin_photos}
networks:
  generator: {type: generator, which_model_G: RRDBNet, nf: 8, nb: 1, blocks_per_checkpoint: 3}
path:
  pretrain_model_generator: weights.pth
  strict_load: true
steps:
  generator:
    training: generator
    lr: !!float 2e-4
    beta1: 0.9
    beta2: 0.99
    injectors:
      gen: {type: generator, generator: generator, in: lq, out: gen}
    losses:
      pix: {type: pix, weight: 1, criterion: l1, real: hq, fake: gen}
train:
  niter: 500
  manual_seed: 7
  warmup_iter: -1
  mega_batch_factor: 2
  val_freq: 100
  ema_rate: .99
  default_lr_scheme: MultiStepLR
  gen_lr_steps: [100, 200]
  lr_gamma: 0.5
"""


def test_older_spellings_are_translated(write):
    config = load(write(OLDER))
    assert config.precision == "fp16"
    assert config.seed == 7
    assert config.logger.tensorboard is False
    assert config.path.pretrain == {"generator": "weights.pth"}
    assert config.train.ema.rate == 0.99
    assert config.train.lr_scheme.type == "MultiStepLR"
    assert config.train.lr_scheme.options == {"gen_lr_steps": [100, 200], "lr_gamma": 0.5}
    assert config.steps["generator"].optimizer_params == {"lr": 2e-4, "beta1": 0.9, "beta2": 0.99}
    notices = "\n".join(map(str, config.notices))
    for key in ("model", "gpu_ids", "fp16", "use_tb_logger", "steps.generator.lr", "train.default_lr_scheme"):
        assert f"notice: {key}: " in notices


def test_an_older_spelling_beside_the_new_one_is_an_error(write):
    assert any("keep 'precision'" in each for each in errors(write(OLDER.replace("fp16: true", "fp16: true\nprecision: bf16"))))


def test_values_that_upstream_gave_a_meaning_we_lack_are_refused(write):
    assert any("wandb: true is not supported" in each for each in errors(write(OLDER.replace("wandb: false", "wandb: true"))))


def test_several_gpus_are_those_of_several_processes(write):
    config = load(write(OLDER.replace("[0]", "[0, 1]")))
    assert config.distributed.gpu_ids == [0, 1]
    assert any("torchrun --nproc_per_node=2 train.py" in str(each) for each in config.notices)


def test_the_resolved_file_loads_and_says_the_same(write):
    config = load(write(OLDER))
    resolved = write(yaml.safe_dump(to_plain(config), sort_keys=False), "resolved.yml")
    again = load(resolved)
    assert to_plain(again) == to_plain(config)
    assert again.notices == []


def test_a_network_nobody_trains_is_a_warning_and_two_trainers_an_error(write):
    second = "\n  other: {which_model_G: RRDBNet, nf: 8, nb: 1}\nsteps:"
    path = write(MINIMAL.replace("\nsteps:", second))
    assert errors(path) == []
    assert any("no step trains this network" in str(p) for p in check(path) if p.severity == "warning")
    step = MINIMAL[MINIMAL.index("  generator:\n    training") : MINIMAL.index("train:\n  niter")]
    twice = MINIMAL.replace("train:\n  niter", step.replace("  generator:\n", "  again:\n", 1) + "train:\n  niter")
    assert any("is trained by the step 'generator' too" in each for each in errors(write(twice)))
    frozen = MINIMAL.replace("    nf: 8", "    trainable: false\n    nf: 8")
    assert any("has 'trainable: false', but this step trains it" in each for each in errors(write(frozen)))


PLUGIN = '''
from torch import nn
from dlas.registry import ARCHS
from dlas.types import PositiveInt

raise RuntimeError("a plug-in must not be imported to check a file")

@ARCHS.register("MyNet{suffix}")
class MyNet(nn.Module):
    """Mine."""
    def __init__(self, *, width: PositiveInt = 4) -> None:
        super().__init__()
'''


def test_plugins_are_checked_by_their_signature_without_importing_them(write):
    write(PLUGIN.replace("{suffix}", "A"), "mine.py")
    text = "plugins: [mine.py]\n" + MINIMAL.replace("RRDBNet", "MyNetA").replace(
        "    nf: 8\n    nb: 1\n    gc: 4\n", "    width: 0\n"
    )
    found = errors(write(text))
    assert found == ["file.yml:12:12: networks.generator.width: expected a whole number of at least 1, found 0"]
    missing = errors(write("plugins: [nothing.py]\n" + MINIMAL))
    assert any("neither a file or folder" in each for each in missing)
    write("def broken(:\n  # ARCHS.register(", "bad.py")
    assert any("not valid Python" in each for each in errors(write("plugins: [bad.py]\n" + MINIMAL)))


def test_a_test_file_takes_networks_and_scale_from_its_run(write, tmp_path):
    config = load(write(MINIMAL))
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    text = f"name: t\npath: {{run: {run}}}\ndatasets:\n  val: {{mode: builtin_photos}}\n"
    path = write(text, "eval.yml")
    assert any("there is no run at" in each for each in errors(path, mode="test"))
    assert [str(p) for p in check(path)] == [str(p) for p in check(path, mode="test")]  # `path.run` and no `train` say so
    (run / "config.resolved.yml").write_text(yaml.safe_dump(to_plain(config), sort_keys=False))
    tested = load(path, mode="test")
    assert tested.scale == 2
    assert tested.networks["generator"].options["nf"] == 8
    assert set(tested.datasets) == {"val"}


@pytest.mark.parametrize(
    "text",
    [
        (Path(__file__).parents[1] / "recipes/esrgan/gan.yml").read_text(),
        "- &a {x: 1e-4, y: 012}\n- <<: *a\n- [yes, ~, '']\n",
        "{a: ",
        "a: b\n c: d\n",
        "a: 1\n\tb: 2",
        "a: !tag 1",
        "a: |# no\n",
        "- " * 5000 + "a",
        "[" * 5000,
    ],
)
def test_a_text_is_read_alike_with_and_without_libyaml(monkeypatch, text):
    fast, problems = source.parse_yaml(text, "file.yml")
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    slow, expected = source.parse_yaml(text, "file.yml")
    assert (fast, problems) == (slow, expected)
    assert getattr(fast, "value_marks", None) == getattr(slow, "value_marks", None)
