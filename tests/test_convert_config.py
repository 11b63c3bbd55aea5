"""Option files of BasicSR and traiNNer-redux become files of this project."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from dlas.cli.main import run_command
from dlas.config import Config, check, load
from dlas.config.source import MarkedDict, read_yaml
from dlas.engine.trainer import Trainer
from dlas.errors import ConfigurationError
from dlas.interop.option_files import convert
from dlas.interop.option_files.basicsr import convert_tree
from dlas.interop.option_files.carry import Source
from dlas.interop.option_files.comments import Comments, split_comment
from dlas.interop.option_files.writing import write_text

FILES = Path(__file__).resolve().parent / "option_files"
ALL = sorted(FILES.glob("*.yml"))


def converted(name: str, folder: Path) -> Config:
    path = folder / "out.yml"
    path.write_text(convert(FILES / f"{name}.yml").text)
    return load(path)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_result_is_right(path, tmp_path, capsys):
    out = tmp_path / "out.yml"
    assert run_command("convert-config", [str(path), "-o", str(out)]) == 0
    assert [problem for problem in check(out) if problem.severity == "error"] == []
    printed = capsys.readouterr().out
    for each in convert(path).uncarried:
        assert f"not carried: {each}\n" in printed
        assert f"#   {each}\n" in out.read_text()


def leaves(node, path=""):
    for key, value in node.items():
        inner = f"{path}.{key}" if path else key
        if isinstance(value, MarkedDict):
            yield from leaves(value, inner)
        else:
            yield inner, node.key_marks[key].line


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_key_that_is_added_to_a_file_is_named(path, tmp_path):
    """Whatever is not known, at any level, is in the report."""
    tree, _ = read_yaml(path)
    lines = path.read_text().splitlines()
    for key, line in leaves(tree):
        if "losses" in key or "{" in lines[line - 1]:
            continue  # a list, or a mapping in one line
        if key.startswith(("train.scheduler", "dist_params", "val.metrics.niqe")):
            continue  # a class of torch is checked when it is built; the others are reported as a whole
        indent = " " * (len(lines[line - 1]) - len(lines[line - 1].lstrip()))
        changed = tmp_path / "changed.yml"
        changed.write_text("\n".join([*lines[: line - 1], f"{indent}surely_unknown: 3", *lines[line - 1 :]]))
        said = convert(changed)
        assert any("surely_unknown" in each.path for each in said.uncarried), key


def test_a_fidelity_file(tmp_path):
    config = converted("basicsr_psnr", tmp_path)
    assert (config.name, config.scale, config.seed, config.device) == ("psnr_from_tiles", 2, 10, "auto")
    train = config.datasets["train"]
    assert (train.batch_size, train.n_workers, train.name) == (8, 3, "Tiles")
    assert train.options["target_size"] == 96
    assert train.options["filename_template"] == "{}x2"
    assert (train.options["use_flip"], train.options["use_rot"]) == (True, False)
    assert set(config.datasets) == {"train", "val", "val_2"}
    options = {"in_nc": 3, "out_nc": 3, "nf": 48, "nb": 6, "gc": 16, "scale": 2}
    assert config.networks["generator"].options == options
    step = config.steps["generator"]
    assert step.optimizer == "adam"
    assert step.optimizer_params == {"lr": 2e-4, "weight_decay": 0, "betas": [0.9, 0.99]}
    assert (step.losses["pix"].weight, step.losses["pix"].options["criterion"]) == (1.0, "l1")
    assert config.train.lr_scheme.options == {"gen_lr_steps": [2000, 4000], "lr_gamma": 0.5}
    assert (config.train.niter, config.train.val_freq, config.train.warmup_iter) == (5000, 1000, -1)
    assert config.train.ema.rate == 0.999
    assert (config.eval.metrics, config.eval.crop_border, config.eval.save_images) == (["psnr_y", "niqe"], 2, False)
    assert (config.logger.print_freq, config.logger.save_checkpoint_freq, config.logger.tensorboard) == (100, 1000, True)
    lost = [each.path for each in convert(FILES / "basicsr_psnr.yml").uncarried]
    assert lost == []
    assert config.datasets["val_2"].options["meta_info"] == "data/large/list.txt"


def test_lists_of_pairs_are_carried(tmp_path):
    text = (FILES / "basicsr_psnr.yml").read_text()
    path = tmp_path / "pairs.yml"
    first = re.search(r"( +)type: PairedImageDataset\n", text)
    path.write_text(text.replace(first[0], f"{first[1]}type: RealESRGANPairedDataset\n{first[1]}meta_info: pairs.txt\n", 1))
    result = convert(path)
    assert [each.path for each in result.uncarried] == []
    assert "meta_info: pairs.txt" in result.text


def test_an_adversarial_file(tmp_path):
    config = converted("basicsr_gan", tmp_path)
    assert config.datasets["train"].batch_size == 16  # of both GPUs
    assert list(config.steps) == ["generator", "discriminator"]
    losses = config.steps["generator"].losses
    assert {name: loss.weight for name, loss in losses.items()} == {"pix": 0.01, "feature": 0.7, "ldl": 1.0, "gan": 0.005}
    assert losses["feature"].options["layer_weights"] == {"conv4_4": 0.5, "conv5_4": 1}
    assert losses["feature"].options["which_model_F"] == "vgg19"
    assert losses["ldl"].options["reference"] == "gen_ema"
    assert losses["ldl"].options["weights_learn"] is True
    assert config.steps["generator"].injectors["gen_ema"].type == "generator_ema"
    assert all(loss.after == 100 for loss in losses.values())
    assert losses["gan"].options["gan_type"] == "esrgan"
    assert config.steps["discriminator"].losses["gan"].options["gan_type"] == "esrgan"
    assert losses["pix"].options["criterion"] == "charbonnier"
    assert losses["pix"].options["eps"] == 1e-6
    assert config.steps["generator"].optimizer_params["exclude_norm_and_bias"] is False
    scheme = config.train.lr_scheme
    assert scheme.options["T_period"] == [3000, 3000, 4000]
    assert (scheme.options["restarts"], scheme.options["restart_weights"]) == ([3000, 6000], [0.5, 0.5])
    assert config.path.pretrain == {"generator": "weights/psnr.pth"}
    assert config.path.strict_load is False


def test_a_file_of_redux(tmp_path):
    config = converted("redux_otf", tmp_path)
    assert (config.precision, config.memory_format, config.tf32) == ("bf16", "channels_last", False)
    train = config.datasets["train"]
    assert train.options["target_size"] == 128
    assert train.options["dataroot_gt"] == "data/hr"
    assert (train.batch_size, config.train.mega_batch_factor) == (12, 2)
    assert config.networks["generator"].options == {"pixel_unshuffle": True, "nf": 32, "nb": 4}
    assert config.steps["generator"].clip_grad_eps == 1.0
    assert config.train.lr_scheme.type == "CosineAnnealingLR"
    assert config.eval.metrics == ["ssim", "dists"]
    lost = {each.path: each.reason for each in convert(FILES / "redux_otf.yml").uncarried}
    assert "bicubic" in lost["datasets.train.type"]
    assert "mssimloss" in lost["train.losses[1]"]
    assert "the nearest is ms_ssim" in lost["train.losses[1]"]


def with_losses(tmp_path: Path, text: str) -> Config:
    """The adversarial file with further losses."""
    path = tmp_path / "file.yml"
    whole = (FILES / "basicsr_gan.yml").read_text()
    path.write_text(whole.replace("  ldl_opt: {type: LDLLoss, loss_weight: 1.0}\n", text))
    out = tmp_path / "out.yml"
    out.write_text(convert(path).text)
    return load(out)


def test_losses_are_carried_with_their_options(tmp_path):
    config = with_losses(
        tmp_path,
        "  tv_opt: {type: WeightedTVLoss, loss_weight: 0.1, reduction: mean}\n"
        "  color_opt: {type: colorloss, loss_weight: 0.2, criterion: charbonnier, scale: 8}\n"
        "  ff_opt: {type: FocalFrequencyLoss, loss_weight: 0.3, alpha: 2.0}\n"
        "  dists_opt: {type: distsloss, loss_weight: 0.4}\n",
    )
    losses = config.steps["generator"].losses
    assert {"tv": 0.1, "color": 0.2, "focal_frequency": 0.3, "dists": 0.4}.items() <= {
        name: loss.weight for name, loss in losses.items()
    }.items()
    assert losses["color"].options == {"real": "hq", "fake": "gen", "criterion": "charbonnier", "scale": 8}
    assert losses["focal_frequency"].options["alpha"] == 2.0
    assert losses["tv"].options == {"fake": "gen"}
    assert "gen_ema" not in config.steps["generator"].injectors


def test_perceptual_and_style_losses_and_labels(tmp_path):
    path = tmp_path / "file.yml"
    text = (FILES / "basicsr_gan.yml").read_text()
    for old, new in (
        ("vgg_type: vgg19", "vgg_type: vgg16"),
        ("range_norm: false", "range_norm: true"),
        ("style_weight: 0\n", "style_weight: 120\n"),
        ("      'conv4_4': 0.5\n", "      'relu4_3': 0.5\n      'head': 1\n"),
        ("real_label_val: 1.0", "real_label_val: 0.9"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text.replace("'conv5_4': 1  # before relu", "'conv5_3': 1"))
    said = convert(path)
    assert [each.path for each in said.uncarried if "layer_weights" in each.path] == ["train.perceptual_opt.layer_weights.head"]
    (tmp_path / "out.yml").write_text(said.text)
    steps = load(tmp_path / "out.yml").steps
    losses = steps["generator"].losses
    assert losses["style"].weight == 120
    for name in ("feature", "style"):
        assert losses[name].options["which_model_F"] == "vgg16"
        assert losses[name].options["layer_weights"] == {"relu4_3": 0.5, "conv5_3": 1}
        assert losses[name].options["range_norm"] is True
    assert losses["gan"].options["real_label"] == 0.9
    assert steps["discriminator"].losses["gan"].options["real_label"] == 0.9


def test_degradations_that_are_off_are_not_lost(tmp_path):
    path = tmp_path / "file.yml"
    text = (FILES / "redux_otf.yml").read_text().replace("high_order_degradation: true", "high_order_degradation: false")
    path.write_text(text)
    said = convert(path)
    assert "blur_prob" not in [each.path for each in said.uncarried]
    assert "blur_prob" in [each.path for each in said.unneeded]


def test_comments_stay_with_their_keys():
    text = convert(FILES / "basicsr_psnr.yml").text
    assert text.startswith(
        "# Fidelity training of a small RRDBNet on tiles.\n# Second line of the head.\nname: psnr_from_tiles\n"
    )
    assert "device: auto  # one card is enough\n" in text
    assert "  # tiles of 480 pixels\n  train:\n" in text
    assert "    nf: 48  # narrower than usual\n" in text
    assert "#   at the end: # the end\n" in text
    original = (FILES / "basicsr_psnr.yml").read_text()
    for comment in filter(None, (split_comment(line)[1] for line in original.splitlines())):
        assert text.count(comment) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a: 1  # b", ("a: 1  ", "# b")),
        ("a: '#1' # x", ("a: '#1' ", "# x")),
        ("a: b#c", ("a: b#c", "")),
        ("# only", ("", "# only")),
        ("a: it's # here", ("a: it's ", "# here")),
    ],
)
def test_what_is_a_comment(line, expected):
    assert split_comment(line) == expected


def test_nothing_is_overwritten(tmp_path, capsys):
    out = tmp_path / "out.yml"
    out.write_text("mine")
    assert run_command("convert-config", [str(ALL[0]), "-o", str(out)]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run_command("convert-config", [str(ALL[0]), "-o", str(tmp_path / "no/out.yml")]) == 2


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("  type: RRDBNet", "  type: SRFormer", "network_g.type: there is no network 'SRFormer' here"),
        ("    type: PairedImageDataset", "    type: REDSDataset", "datasets.train.type: no counterpart to 'REDSDataset'"),
        ("network_g:", "network_x:", "not an option file of BasicSR"),
        ("    type: L1Loss", "    type: OddLoss", "none of the losses of the file has a counterpart"),
        ("  total_iter: 5000", "", "no 'train.total_iter'"),
        ("  total_iter: 5000", "  total_iter: many", "train.total_iter: expected a number, found the text 'many'"),
        ("    lr: !!float 2e-4", "    lr: fast", "steps.generator.optimizer_params.lr: expected a number greater than 0"),
        ("name: psnr_from_tiles", "name: [", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(before, after, expected, tmp_path, capsys):
    text = (FILES / "basicsr_psnr.yml").read_text()
    assert before in text
    path, out = tmp_path / "in.yml", tmp_path / "out.yml"
    path.write_text(text.replace(before, after, 1))
    assert run_command("convert-config", [str(path), "-o", str(out)]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.yml"]


@pytest.mark.parametrize("odd", ["text", [1, "b"], {"a": 1}, None, -3.5, True], ids=str)
def test_no_value_of_a_file_ends_in_a_traceback(odd):
    """Every value is replaced by something odd; the file is converted or refused."""
    for path in ALL:
        tree, _ = read_yaml(path)
        for key, _ in leaves(tree):
            changed = copy.deepcopy(tree)
            *parents, last = key.split(".")
            holder = changed
            for name in parents:
                holder = holder[name]
            holder[last] = odd
            source = Source(changed)
            try:
                target = convert_tree(source)
            except ConfigurationError:
                continue
            assert write_text(target, Comments(""), [*source.uncarried, *source.rest()], source.unneeded)


def test_a_converted_file_trains(tmp_path):
    generator = np.random.default_rng(3)
    roots = ("tiles/hr", "tiles/lr_x2", "small/hr", "small/lr_x2", "large/hr", "large/lr_x2")
    for root in roots:
        (tmp_path / root).mkdir(parents=True)
        side, ending = (48, "") if root.endswith("hr") else (24, "" if root.startswith("large") else "x2")
        for number in range(2):
            picture = cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), (side, side))
            cv2.imwrite(str(tmp_path / root / f"{number}{ending}.png"), picture)
    (tmp_path / "large/list.txt").write_text("1.png (48,48,3)\n")
    path = tmp_path / "out.yml"
    path.write_text(convert(FILES / "basicsr_psnr.yml").text.replace("data/", f"{tmp_path}/"))
    small = [
        "networks.generator.nf=8",
        "networks.generator.nb=1",
        "datasets.train.target_size=32",
        "datasets.train.batch_size=2",
    ]
    short = ["train.niter=2", "datasets.train.n_workers=0", f"path.experiments={tmp_path}", "logger.tensorboard=false"]
    short.append("eval.metrics=[psnr_y]")  # the parameters of NIQE are not at hand
    assert Trainer(load(path, [*small, *short])).run().step == 2
