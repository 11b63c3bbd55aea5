"""Evaluation: batches, tiles, ensembles, precision and weights change how figures come about, not what they mean."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from dlas.config import check, load
from dlas.data.base import Dataset, Request, Sample
from dlas.data.loader import evaluation_items
from dlas.engine.ema import ModelEma
from dlas.engine.evaluate import Evaluator
from dlas.engine.figures import Scorer
from dlas.engine.passes.network import PicturePasses
from dlas.engine.testing import run_test
from dlas.errors import CheckpointError, ConfigurationError, TrainingError
from dlas.metrics import create_metric
from dlas.registry import ARCHS, DATASETS, METRICS
from runs import configure, rows, trainer

SIZES = ((12, 12), (8, 15), (12, 12), (15, 8), (8, 15), (12, 12), (11, 9))


@DATASETS.register("toy_sizes")
class ToySizes(Dataset):
    """Pictures of several sizes; three are alike."""

    provides = ("lq", "hq", "name")

    def __init__(self, phase: str, /, *, channels: int = 3) -> None:
        self.channels = channels

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, request: Request) -> Sample:
        height, width = SIZES[request.index]
        generator = torch.Generator().manual_seed(request.index)
        hq = torch.rand(self.channels, 2 * height, 2 * width, generator=generator)
        return {"lq": nn.functional.avg_pool2d(hq, 2), "hq": hq, "name": f"p{request.index}"}


@ARCHS.register("ToyPlain")
class ToyPlain(nn.Module):
    """Convolutions without anything that looks further."""

    def __init__(self, *, scale: int = 2, channels: int = 3, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 5, padding=2 * dilation, dilation=dilation)
        self.last = nn.Conv2d(8, channels * scale**2, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h * scale, w * scale)."""
        return nn.functional.pixel_shuffle(self.last(torch.tanh(self.first(x))), self.scale)

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8),)


PLAIN = toys.PSNR.replace("{which_model_G: ToyGenerator, dropout: 0.1}", "{which_model_G: ToyPlain}").replace(
    "val: {mode: toy_pairs}", "val: {mode: toy_sizes}"
)


def evaluated(folder: Path, *overrides: str, text: str = PLAIN) -> tuple[Any, dict[str, Tensor]]:
    run = trainer(folder, text, *overrides)
    pictures: dict[str, Tensor] = {}
    figures = run.validation.evaluator.run(run.datasets["val"], 0, lambda r: pictures.update({r.prefix + r.name: r.output}))
    return figures, pictures


@pytest.mark.parametrize("overrides", [["eval.batch_size=2"], ["eval.batch_size=3"], ["eval.batch_size=100"]])
def test_batches_change_no_figure(tmp_path, overrides):
    metrics = "eval.metrics=[psnr, psnr_y, ssim_y, lr_psnr, sharpness, gradient_w1]"
    one, ones = evaluated(tmp_path, metrics)
    many, manys = evaluated(tmp_path, metrics, *overrides)
    assert list(one.pictures) == list(many.pictures) == [f"p{i}" for i in range(len(SIZES))]
    assert one.means.keys() == many.means.keys() and len(one.means) == 12
    for name, value in one.means.items():
        assert many.means[name] == pytest.approx(value, rel=1e-6), name
        assert sum(v[name] for v in one.pictures.values()) / len(SIZES) == pytest.approx(value), name
    for name, output in ones.items():
        torch.testing.assert_close(manys[name], output, rtol=0, atol=1e-6)


def test_distances_between_sets_do_not_depend_on_batches(tmp_path):
    options = ["eval.metrics=[fd_mobilenetv2, pd_mobilenetv2]", "eval.baseline=none"]
    options += [f"eval.metric_options.{name}={{random_weights: true}}" for name in ("fd_mobilenetv2", "pd_mobilenetv2")]
    one, many = (evaluated(tmp_path, *options, f"eval.batch_size={size}")[0] for size in (1, 3))
    assert many.means == pytest.approx(one.means, rel=1e-5)
    assert all(list(values) == ["pd_mobilenetv2"] for values in one.pictures.values())


def test_several_sets_stand_apart(tmp_path):
    more = "  val: {mode: toy_sizes}\n  other: {mode: toy_pairs, name: Other}\n"
    text = PLAIN.replace("  val: {mode: toy_sizes}\n", more)
    run = trainer(tmp_path, text, "checkpoints.keep_best={metric: ssim_y, set: Other}")
    run.run()
    assert {row["set"] for row in rows(tmp_path / "toy", "val")} == {"val", "Other"}
    assert {f"{name}/8.csv" for name in ("val", "Other")} == {
        str(file.relative_to(tmp_path / "toy/val")) for file in (tmp_path / "toy/val").glob("*/8.csv")
    }
    assert run.best.step(run.progress.best) == run.progress.best["Other/ssim_y"]["step"]
    with pytest.raises(ConfigurationError, match="Other"):
        configure(tmp_path, text.replace("{mode: toy_sizes}", "{mode: toy_sizes, name: Other}"))


def test_only_pictures_that_are_alike_go_together_and_few_wait():
    items = list(evaluation_items(ToySizes("val"), batch_size=2))
    assert sorted(p for item in items for p in item["positions"]) == list(range(len(SIZES)))
    assert [item["positions"] for item in items] == [[0, 2], [1, 4], [3], [5], [6]]
    waiting = list(evaluation_items(Different(), batch_size=1))
    assert [item["positions"] for item in waiting] == [[i] for i in range(9)]
    read: list[int] = []
    first = next(evaluation_items(Different(read), batch_size=2))
    assert first["positions"] == [0] and len(read) == 8


class Different(ToySizes):
    def __init__(self, read: list[int] | None = None) -> None:
        self.read = [] if read is None else read

    def __len__(self) -> int:
        return 9

    def __getitem__(self, request: Request) -> Sample:
        self.read.append(request.index)
        return {"lq": torch.zeros(3, 4 + request.index, 4)}


@pytest.mark.parametrize("tile", ["6", "100", "auto"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_tiles_join_to_the_whole_picture(tmp_path, monkeypatch, tile, batch_size):
    whole, pictures = evaluated(tmp_path)
    passes = []
    forward = ToyPlain.forward
    monkeypatch.setattr(ToyPlain, "forward", lambda self, x: (passes.append(x.shape), forward(self, x))[1])
    tiled, others = evaluated(tmp_path, f"eval.tile={tile}", f"eval.batch_size={batch_size}")
    assert len(passes) > len(SIZES) if tile == "6" else max(shape[-1] for shape in passes) == 64 or tile == "100"
    assert tiled.means == pytest.approx(whole.means, rel=1e-6)
    for name, picture in pictures.items():
        torch.testing.assert_close(others[name], picture, rtol=0, atol=1e-6)


def test_tiles_are_as_the_whole_to_1e_5_before_rounding():
    torch.manual_seed(0)
    network = ToyPlain().requires_grad_(False)
    x = torch.rand(2, 3, 50, 71)
    tiled = PicturePasses(network, torch.device("cpu"), tile=16)(x)
    torch.testing.assert_close(tiled, network(x), rtol=0, atol=1e-5)


def test_a_halo_does_not_outlive_the_weights(tmp_path):
    """A network that has learned to look further must not be cut as it was before."""
    text = PLAIN.replace("{which_model_G: ToyPlain}", "{which_model_G: ToyPlain, dilation: 8}")
    run = trainer(tmp_path, text.replace("toy_sizes", "toy_pairs, size: 160"), "eval.tile=16", "eval.weights=raw")
    evaluator, weight = run.validation.evaluator, run.networks["generator"].first.weight
    tiles, learned = evaluator._called["generator"], weight.detach().clone()
    halos, figures = [], {}
    for called in (evaluator._called, evaluator.networks):
        with torch.no_grad():
            weight.zero_()[..., 2, 2] = learned[..., 2, 2]
            evaluator.run(run.datasets["val"], 0, lambda result: None)
            halos.append(tiles._tiler.reach.halo)
            weight.copy_(learned)
            evaluator._called = called
        figures[len(figures)] = evaluator.run(run.datasets["val"], 0, lambda result: None).means
        halos.append(tiles._tiler.reach.halo)
    assert halos[0] < 16 < halos[1]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)


def test_an_ensemble_is_the_mean_of_eight(tmp_path):
    torch.manual_seed(0)
    network = ToyPlain().requires_grad_(False)
    x = torch.rand(2, 3, 7, 10)
    plain = torch.stack([network(x.rot90(k, (-2, -1))).rot90(-k, (-2, -1)) for k in range(4)]).mean(0)
    mirrored = torch.stack([network(x.flip(-1).rot90(k, (-2, -1))).rot90(-k, (-2, -1)) for k in range(4)]).mean(0)
    expected = (plain + mirrored.flip(-1)) / 2
    torch.testing.assert_close(PicturePasses(network, torch.device("cpu"), ensemble=True)(x), expected)
    plain, _ = evaluated(tmp_path)
    alone, _ = evaluated(tmp_path, "eval.self_ensemble=true")
    both, _ = evaluated(tmp_path, "eval.self_ensemble=true", "eval.batch_size=3", "eval.tile=6")
    assert alone.means["psnr"] != plain.means["psnr"]
    assert both.means == pytest.approx(alone.means, rel=1e-6)


def test_own_weights_stand_beside_their_average_by_name(tmp_path):
    run = trainer(tmp_path, toys.PSNR, "eval.weights=both", "checkpoints.keep_best={metric: raw_psnr}")
    run.run()
    folder = tmp_path / "toy"
    last = rows(folder, "val")[-1]
    for weights, prefix in (("ema", ""), ("raw", "raw_")):
        run.config.eval.weights = weights
        alone = run.validation.evaluator.run(run.datasets["val"], 8, lambda result: None)
        assert {k: last[prefix + k] for k in ("psnr", "ssim_y")} == {k: alone.means[k] for k in ("psnr", "ssim_y")}
    assert last["psnr"] != last["raw_psnr"]
    assert run.progress.best["val/raw_psnr"]["step"] == int((folder / "checkpoints/best").read_text())
    with (folder / "val/val/8.csv").open() as file:
        table = {row["image"]: row for row in csv.DictReader(file)}
    assert list(table) == ["picture0", "picture1", "mean"]
    assert list(table["mean"])[1:] == ["psnr", "ssim_y", "raw_psnr", "raw_ssim_y", "bicubic_psnr", "bicubic_ssim_y"]
    assert float(table["mean"]["raw_psnr"]) == last["raw_psnr"]
    assert {f.name for f in (folder / "val/val/picture0").iterdir()} >= {"8.png", "8.raw.png", "hq.png", "bicubic.png"}
    path = tmp_path / "e.yml"
    path.write_text("name: e\ndatasets:\n  val: {mode: toy_pairs}\neval: {weights: both, crop_border: 2, metrics: [psnr]}\n")
    tested = run_test(load(path, [f"path.run={folder}", f"path.experiments={tmp_path}"], mode="test"))["val"]
    assert tested.means == pytest.approx({k: v for k, v in last.items() if k in tested.means})
    assert list(tested.means) == ["psnr", "raw_psnr", "bicubic_psnr"] and "raw_psnr" in tested.table()
    assert (tmp_path / "e/val/picture0.png").read_bytes() != (tmp_path / "e/val/picture0.raw.png").read_bytes()


def test_evaluation_has_a_precision_of_its_own(tmp_path, monkeypatch):
    seen: list[torch.dtype] = []
    forward = ToyPlain.forward
    monkeypatch.setattr(ToyPlain, "forward", lambda self, x: (y := forward(self, x), seen.append(y.dtype))[0])
    run = trainer(tmp_path, PLAIN, "eval.precision=bf16", "train.niter=1")
    run.run()
    assert set(seen[:1]) == {torch.float32} and set(seen[1:]) == {torch.bfloat16}
    assert rows(tmp_path / "toy", "val")[-1]["psnr"] > 0


def test_nothing_waits_for_a_picture(tmp_path, monkeypatch):
    """On a GPU each of these calls would wait until all work is done."""
    run = trainer(tmp_path, PLAIN)
    run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None)
    for name in ("item", "tolist", "__float__", "__bool__"):
        monkeypatch.setattr(Tensor, name, _refuse)
    batch = next(evaluation_items(run.datasets["val"], batch_size=3))
    with torch.no_grad():
        result = run.validation.evaluator._batch(batch, 0)
        Scorer(run.validation.evaluator._metrics()).update(
            result.names, result.positions, result.output, result.target, result.source
        )


def _refuse(*_: Any) -> None:
    raise AssertionError("a value was read")


# -------------------------------------------------------------------------------------------------------------- what breaks


@pytest.mark.parametrize("metrics", ["[psnr, ssim]", "[psnr]"])
def test_grey_pictures(tmp_path, metrics):
    grey = PLAIN.replace("ToyPlain}", "ToyPlain, channels: 1}").replace("{mode: toy_sizes}", "{mode: toy_sizes, channels: 1}")
    grey = grey.replace("{mode: toy_pairs, batch_size: 4}", "{mode: toy_sizes, channels: 1}")
    run = trainer(tmp_path, grey, f"eval.metrics={metrics}", "logger.tensorboard=true", "train.niter=1")
    run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None)
    run.run()
    assert (tmp_path / "toy/val/val/p0/1.png").is_file()
    with pytest.raises(TrainingError, match=r"metric 'psnr_y' on picture 'p0': the Y channel needs RGB"):
        evaluated(tmp_path, "eval.metrics=[psnr_y]", "name=luma", text=grey)


@pytest.mark.parametrize("overrides", [[], ["eval.tile=6"], ["eval.self_ensemble=true", "eval.batch_size=3"]])
def test_an_output_that_is_not_finite_is_told_of(tmp_path, monkeypatch, caplog, overrides):
    forward = ToyPlain.forward
    monkeypatch.setattr(ToyPlain, "forward", lambda self, x: forward(self, x) * (1 if self.training else torch.nan))
    run = trainer(tmp_path, PLAIN, "train.niter=1", "eval.metrics=[psnr, fd_mobilenetv2]",
                  "eval.metric_options.fd_mobilenetv2={random_weights: true}", *overrides)  # fmt: skip
    monkeypatch.setattr("dlas.observe.console.LOGGER.propagate", True)
    run.run()
    assert rows(tmp_path / "toy", "val")[-1]["psnr"] is None
    assert "val: psnr is not a number on 7 of 7 pictures (p0, p1, p2, ...)" in caplog.text


def test_niqe_of_what_is_not_finite_is_no_number():
    from dlas.metrics.niqe import niqe

    value = niqe(torch.full((200, 200), torch.nan, dtype=torch.float64), torch.zeros(36).double(), torch.eye(36).double())
    assert value.isnan()


@pytest.mark.parametrize(("injector", "message"), [
    ("{type: generator, generator: generator, in: [lq, lq], out: gen}", r"is given \['lq', 'lq'\]"),
    ("{type: direct, in: lq, out: gen}", "by an injector of the type 'direct'"),
    ("{type: generator, generator: generator, in: lq, out: [gen, more]}", "gives .'gen', 'more'."),
    ("{type: generator, generator: generator, in: lq, out: gen, args: {a: 1}}", "is called with 'args'"),
])  # fmt: skip
@pytest.mark.parametrize("setting", ["tile: 16", "self_ensemble: true"])
def test_tiles_and_ensembles_need_one_picture_of_one_picture(tmp_path, injector, message, setting):
    path = tmp_path / "options.yml"
    path.write_text(PLAIN.replace("crop_border: 2", f"crop_border: 2, {setting}, injectors: {{gen: {injector}}}"))
    errors = [str(p) for p in check(path) if p.severity == "error"]
    assert len(errors) == 1
    with pytest.raises(ConfigurationError, match=message):
        load(path)


def test_both_weights_need_an_average(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no average is kept: 'train\.ema\.enabled' is false"):
        configure(tmp_path, PLAIN, "eval.weights=both", "train.ema.enabled=false")
    with pytest.raises(ConfigurationError, match=r"'raw_psnr' is not measured"):
        configure(tmp_path, PLAIN, "checkpoints.keep_best={metric: raw_psnr}")


def test_the_metrics_of_papers_are_there():
    names = {"psnr", "psnr_y", "ssim", "ssim_y", "ms_ssim", "ms_ssim_y", "lpips", "dists", "niqe", "fid", "lr_psnr"}
    assert names <= set(METRICS.entries())


@pytest.mark.parametrize(
    ("name", "path"), [("lpips", "heads_path"), ("dists", "weights_path"), ("niqe", "load_path"), ("fid", "load_path")]
)
def test_a_metric_without_its_weights_says_where_it_looked(tmp_path, monkeypatch, name, path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DLAS_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=rf"(?s)metric '{name}'.*{tmp_path}"):
        create_metric({"type": name})
    with pytest.raises(CheckpointError, match="no-such-file"):
        create_metric({"type": name, path: str(tmp_path / "no-such-file.pth")})


def test_an_evaluator_takes_averages_as_it_is_told(tmp_path):
    run = trainer(tmp_path, PLAIN, "eval.weights=both")
    network = run.networks["generator"]
    ema = ModelEma(network, rate=1)
    with torch.no_grad():
        network.last.bias.add_(0.2)
    evaluator = Evaluator(run.config, run.networks, {"generator": ema}, run.device)
    figures = evaluator.run(run.datasets["val"], 0, lambda result: None)
    assert figures.means["psnr"] != figures.means["raw_psnr"]
    assert all(values.keys() == figures.means.keys() for values in figures.pictures.values())
