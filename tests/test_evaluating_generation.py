"""Evaluating models that make pictures of nothing: no input pictures, grids, series, and figures that samples have already."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.config import check, load
from dlas.context import Context
from dlas.data.base import Dataset, Request, Sample
from dlas.data.images.files import read_image, to_tensor
from dlas.diffusion import create_process
from dlas.diffusion.likelihood import bits_per_dimension
from dlas.diffusion.training import Objective
from dlas.engine.testing import run_test
from dlas.errors import ConfigurationError, TrainingError
from dlas.injectors import create_injector
from dlas.injectors.base import Injector, State
from dlas.observe.pictures import grid
from dlas.registry import ARCHS, DATASETS, INJECTORS
from dlas.types import PositiveInt, StateIn, StateOut
from runs import configure, rows, trainer


@DATASETS.register("toy_pictures")
class ToyPictures(Dataset):
    """Pictures alone; real ones of a distribution that is never drawn from."""

    provides = ("hq", "name")

    def __init__(self, phase: str, /, *, length: PositiveInt = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, request: Request) -> Sample:
        generator = torch.Generator().manual_seed(request.index)
        return {"hq": (torch.rand(3, 8, 8, generator=generator) * 255).round() / 255, "name": f"p{request.index}"}


@ARCHS.register("ToyUnconditional")
class ToyUnconditional(nn.Module):
    """A convolution that is told the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """(B, 3, H, W), (B,) -> (B, 3, H, W)."""
        time = (times / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        return self.layer(torch.cat((x, time.to(x)), dim=1))

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 3, 8, 8), torch.rand(2))


@INJECTORS.register("toy_sampler")
class ToySampler(Injector):
    """Noise that fades, in [-1, 1], of the shape of the data.

    Args:
        in_: the data.
        out: the samples.
        out_strip: how they came about.
        steps: how many.
    """

    def __init__(self, *, in_: StateIn, out: StateOut, out_strip: StateOut, steps: PositiveInt = 3) -> None:
        self.source, self.out, self.out_strip, self.steps = in_, out, out_strip, steps

    def __call__(self, state: State, context: Context) -> dict[str, Any]:
        noise = context.randn(state[self.source].shape[1:], self.out, state[self.source].device).clamp(-1, 1)
        return {self.out: noise / 2, self.out_strip: torch.stack([noise / (k + 1) for k in range(self.steps)], 1)}


FILE = """\
name: run
datasets:
  train: {mode: toy_pictures, batch_size: 4}
  val: {mode: toy_pictures}
networks:
  generator: {which_model_G: ToyUnconditional}
steps:
  generator:
    training: generator
    optimizer_params: {lr: 1e-3}
    injectors:
      data: {type: normalize, in: hq, out: x0, shift: 0.5, scale: 0.5}
      error: {type: diffusion, in: x0, out: error, generator: generator, process: PROCESS}
    losses: {diffusion: {type: direct, key: error, weight: 1}}
train: {niter: 2, val_freq: 1, ema: {enabled: false}}
eval:
  metrics: [fd_pca]
  metric_options: {fd_pca: {dimensions: 3, size: 2}}
  values: [bits]
  strips: [gen_strip]
  reverse_n1_to_1: [gen, gen_strip]
  num_strips: 5
  injectors:
    data: {type: normalize, in: hq, out: x0, shift: 0.5, scale: 0.5}
    gen: {type: toy_sampler, in: x0, out: gen, out_strip: gen_strip}
    bits: {type: bits_per_dimension, in: x0, out: bits, generator: generator, process: PROCESS}
checkpoints: {keep_best: {metric: bits}}
""".replace("PROCESS", "{type: vp, schedule: cosine, steps: 6}")


def test_a_run_shows_and_measures_samples(tmp_path, monkeypatch) -> None:
    sent: dict[str, Tensor] = {}
    monkeypatch.setattr("dlas.observe.recorder.Recorder.image", lambda self, tag, image, step: sent.update({tag: image}))
    run = trainer(tmp_path, FILE, "eval.batch_size=4")
    run.run()
    folder = tmp_path / "run/val/val"
    first, row = rows(tmp_path / "run", "val")
    assert math.isfinite(row["fd_pca"]) and row["fd_pca"] > 0
    assert run.progress.best["val/bits"]["value"] == min(first["bits"], row["bits"])
    assert run.best.step(run.progress.best) == (1 if first["bits"] < row["bits"] else 2)
    with (folder / "2.csv").open() as file:
        table = {line["image"]: line for line in csv.DictReader(file)}
    bits = [float(table[f"p{i}"]["bits"]) for i in range(10)]
    assert len(set(bits)) == 10 and table["p0"]["fd_pca"] == ""
    assert sum(bits) / 10 == pytest.approx(row["bits"]) == pytest.approx(float(table["mean"]["bits"]))
    assert sent.keys() == {"sheets/val/grid", "sheets/val/gen_strip"}
    samples = Context({}, positions=range(10), seed=run.config.seed).randn((3, 8, 8), "gen").clamp(-1, 1)
    torch.testing.assert_close(sent["sheets/val/grid"], grid(samples / 4 + 0.5), rtol=0, atol=0.51 / 255)
    series = torch.stack([samples[:5] / (k + 1) / 2 + 0.5 for k in range(3)], 1)
    torch.testing.assert_close(sent["sheets/val/gen_strip"], grid(series.flatten(0, 1), columns=3))
    for name, sheet in sent.items():
        written = to_tensor(read_image(folder / f"2.{name.rpartition('/')[2]}.png"))
        torch.testing.assert_close(written, sheet, rtol=0, atol=0.51 / 255)
    assert not (folder / "p0/lq.png").exists()
    torch.testing.assert_close(to_tensor(read_image(folder / "p3/2.png")), samples[3] / 4 + 0.5, rtol=0, atol=0.51 / 255)


def test_samples_and_figures_do_not_depend_on_batches(tmp_path) -> None:
    figures = []
    for size in (1, 3, 10):
        run = trainer(tmp_path, FILE, f"eval.batch_size={size}", f"name=run{size}")
        figures.append(run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None))
    for other in figures[1:]:
        assert other.means == pytest.approx(figures[0].means, rel=1e-5)
        assert {name: list(values) for name, values in other.pictures.items()} == {f"p{i}": ["bits"] for i in range(10)}


def test_dlas_test_writes_the_sheets_and_the_values(tmp_path) -> None:
    trainer(tmp_path, FILE).run()
    path = tmp_path / "e.yml"
    evaluation = FILE.partition("eval:")[2].partition("checkpoints")[0]
    path.write_text("name: e\ndatasets:\n  val: {mode: toy_pictures}\neval:" + evaluation)
    config = load(path, ["name=e", f"path.run={tmp_path}/run", f"path.experiments={tmp_path}", "eval.grid=4"], mode="test")
    result = run_test(config)["val"]
    assert result.means["bits"] == pytest.approx(rows(tmp_path / "run", "val")[-1]["bits"])
    assert "bits" in result.table()
    assert read_image(tmp_path / "e/val.grid.png").shape == (8, 4 * 8 + 3 * 2, 3)
    assert read_image(tmp_path / "e/val.gen_strip.png").shape == (5 * 8 + 4 * 2, 3 * 8 + 2 * 2, 3)


def test_no_grid_where_there_are_input_pictures_unless_asked_for(tmp_path) -> None:
    import toys

    trainer(tmp_path, toys.PSNR).run()
    assert not list((tmp_path / "toy/val/val").glob("*.grid.png"))
    trainer(tmp_path, toys.PSNR, "name=other", "eval.grid=1", "eval.weights=both").run()
    names = {file.name for file in (tmp_path / "other/val/val").glob("*.png")}
    assert names == {"4.grid.png", "8.grid.png", "4.raw_grid.png", "8.raw_grid.png"}


def test_true_maps_all_pictures(tmp_path) -> None:
    text = FILE.replace("[gen, gen_strip]", "true").replace("eval:\n", "eval:\n  target_state: x0\n")
    found = {}
    for name, each in (("one", FILE), ("two", text)):
        run = trainer(tmp_path, each, f"name={name}")
        found[name] = run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None).means
    assert found["one"] == pytest.approx(found["two"], rel=1e-5)


def test_the_injector_gives_the_bound() -> None:
    """As `bits_per_dimension` with the denoiser by hand, for every sample on its own."""
    options = {"type": "vp", "schedule": "cosine", "steps": 6}
    network = ToyUnconditional().requires_grad_(False)
    injector = create_injector(
        {
            "type": "bits_per_dimension",
            "in": "x",
            "out": "bits",
            "generator": "net",
            "process": options,
            "out_x0_error": "error",
        }
    )
    x0 = (torch.rand(3, 3, 4, 4) * 255).round() / 127.5 - 1
    positions = [5, 0, 2]
    context = Context({"net": network}, positions=positions, seed=4, training=False)
    found = injector({"x": x0}, context)
    objective = Objective(create_process(options))

    def step(x: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return objective.estimate(network(x, times), None, x, times, lambda each: each.clamp(-1, 1))

    expected = bits_per_dimension(objective.chain, step, x0, lambda k: context.randn((3, 4, 4), f"bits/noise {k}"))
    torch.testing.assert_close(found["bits"], expected.total)
    torch.testing.assert_close(found["error"], expected.x0_error.mean(1))
    for place, position in enumerate(positions):
        alone = injector({"x": x0[place : place + 1]}, Context({"net": network}, positions=[position], seed=4))
        torch.testing.assert_close(alone["bits"], found["bits"][place : place + 1])


class Exact(nn.Module):
    """Knows the one picture that there is: the noise follows."""

    def __init__(self, x0: Tensor, objective: Objective, learned: bool) -> None:
        super().__init__()
        self.x0, self.objective, self.learned = x0, objective, learned

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        level = self.objective.process.level(times).like(x)
        eps = (x - level.alpha * self.x0) / level.sigma
        return torch.cat([eps, -torch.ones_like(eps)], 1) if self.learned else eps


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_a_model_that_knows_the_picture_needs_the_last_step_and_the_prior_alone(variance) -> None:
    options = {"type": "vp", "schedule": "linear", "steps": 1000}
    objective = Objective(create_process(options), variance=variance)
    x0 = (torch.rand(2, 3, 4, 4) * 255).round() / 127.5 - 1
    injector = create_injector({"type": "bits_per_dimension", "in": "x", "out": "bits", "generator": "net",
                                "process": options, "variance": variance, "timesteps": 20})  # fmt: skip
    respaced = Objective(injector.process, variance=variance)
    network = Exact(x0, objective, variance == "learned_range")
    found = injector({"x": x0}, Context({"net": network}, positions=[0, 1]))["bits"]
    link = respaced.chain.at(torch.zeros(2, dtype=torch.long), x0)
    from dlas.diffusion.likelihood import discretised_log_likelihood, prior_bits

    last = -discretised_log_likelihood(x0, x0, link.log_small / 2).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found, last + prior_bits(respaced.chain, x0), rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- what breaks


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.values=[bitz]", r"nothing writes 'bitz'; did you mean 'bits'"),
        ("eval.strips=[strip]", "nothing writes 'strip'"),
        ("eval.input_state=low", "nothing writes 'low'"),
        ("eval.metrics=[bits]", "no metric"),
        ("checkpoints.keep_best={metric: bitz}", "'bitz' is not measured"),
        ("eval.reverse_n1_to_1=[fake]", "'fake' is no key that evaluation looks at"),
        ("eval.grid=-1", "at least 0"),
    ],
)
def test_mistakes_are_found_in_the_file(tmp_path, override, message) -> None:
    import re

    path = tmp_path / "options.yml"
    path.write_text(FILE)
    assert not [str(p) for p in check(path)]
    found = [str(p) for p in check(path, [override])]
    assert any(re.search(message, each) for each in found), found


def test_names_must_differ(tmp_path) -> None:
    text = FILE.replace("out: bits,", "out: fd_pca,").replace("values: [bits]", "values: [fd_pca]")
    text = text.replace("metric: bits", "metric: fd_pca")
    with pytest.raises(ConfigurationError, match="'fd_pca' is the name of a metric"):
        configure(tmp_path, text)
    with pytest.raises(ConfigurationError, match="'grid' is the name of the grid of outputs"):
        configure(tmp_path, FILE.replace("gen_strip", "grid"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.values=[x0]", r"'x0' must hold one number for each of the 1 pictures; it holds 1 x 3 x 8 x 8"),
        ("eval.strips=[bits]", r"'bits' must be \(batch, steps, channels, height, width\), or .*; it is 1"),
    ],
)
def test_entries_of_another_shape_are_told_of(tmp_path, override, message) -> None:
    text = FILE.partition("checkpoints:")[0].replace("[gen, gen_strip]", "[gen]")
    run = trainer(tmp_path, text, override)
    with pytest.raises(TrainingError, match=message):
        run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None)


def test_a_bound_needs_timesteps() -> None:
    with pytest.raises(ConfigurationError, match="has no timesteps, and the bound is a sum over them"):
        create_injector({"type": "bits_per_dimension", "in": "x", "out": "b", "generator": "g", "process": {"type": "flow"}})


def test_a_folder_of_reference_pictures_replaces_the_true_ones(tmp_path: Path) -> None:
    from dlas.data.images.files import write_png

    for index in range(10):
        write_png(tmp_path / f"real/{index}.png", ToyPictures("val")[Request(index, index, 0)]["hq"])
    found = {}
    for name, reference in (("one", ""), ("two", f", reference: {tmp_path}/real")):
        run = trainer(tmp_path, FILE.replace("size: 2}", f"size: 2{reference}}}"), f"name={name}")
        found[name] = run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None).means
    assert found["one"] == pytest.approx(found["two"], rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------- older files


def test_an_evaluator_of_older_files_becomes_a_data_set_and_a_metric(tmp_path) -> None:
    text = (
        FILE.replace("  val: {mode: toy_pictures}\n", "").partition("eval:")[0]
        + """\
eval:
  evaluators:
    fid:
      type: sr_diffusion_fid
      for: generator
      batch_size: 3
      fid_batch_size: 64
      dataset: {name: real, mode: toy_pictures, length: 6}
      diffusion_params: {type: toy_sampler, in: hq, out_strip: strip}
"""
    )
    path = tmp_path / "options.yml"
    path.write_text(text)
    config = load(path, ["eval.metrics=[fd_pca]"])
    assert config.datasets["fid"].name == "real" and config.datasets["fid"].options == {"length": 6}
    assert config.eval.batch_size == 3 and config.eval.reverse_n1_to_1 == ["gen"]
    assert config.eval.injectors["fid"].options["out"] == "gen"
    assert load(path).eval.metrics == ["fid"]
    assert any("read as 'datasets.fid'" in str(problem) for problem in config.notices)
    run = trainer(tmp_path, text, "eval.metrics=[fd_pca]", "eval.metric_options={fd_pca: {size: 2, dimensions: 2}}")
    run.run()
    assert {row["set"] for row in rows(tmp_path / "run", "val")} == {"real"}
    path.write_text(text.replace("dataset:", "data_set:"))
    assert any("needs 'dataset' and 'diffusion_params'" in str(problem) for problem in check(path))
    path.write_text(text + "  injectors: {gen: {type: toy_sampler, in: hq, out: gen, out_strip: strip}}\n")
    assert any("one way to make the samples" in str(problem) for problem in check(path))
    path.write_text(text.replace("train: {mode", "fid: {mode: toy_pictures}\n  train: {mode"))
    assert any("there is a data set 'fid' already" in str(problem) for problem in check(path))
