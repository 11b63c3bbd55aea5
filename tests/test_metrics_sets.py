"""Distances between sets of pictures: closed forms, other ranks, and sets that are measured once."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import toys
from dlas.cli.main import run_command
from dlas.data.images.files import write_png
from dlas.engine.reference_sets import ReferenceSets
from dlas.errors import CheckpointError, ConfigurationError, DataError
from dlas.metrics import Average, create_metric, quantize_8bit
from dlas.metrics.accumulators import Moments, Rows
from dlas.metrics.coverage import share_within
from dlas.metrics.frechet import frechet_distance, principal_directions
from dlas.metrics.kernel import kernel_distance, mean_over_subsets
from dlas.metrics.sets import Statistics
from dlas.ranks import gather, largest

CPU = torch.device("cpu")
RANDOM = {"random_weights": True}
SETS = {"fd_mobilenetv2": RANDOM, "kd_mobilenetv2": {**RANDOM, "subsets": 5, "subset_size": 6},
        "precision_mobilenetv2": RANDOM, "recall_mobilenetv2": RANDOM, "fd_pca": {"dimensions": 4, "size": 4},
        "fd_features": {**RANDOM, "which_model_F": "alexnet", "layer": "relu2"}}  # fmt: skip


def normal(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(count: int, seed: int = 0, size: int = 32, channels: int = 3) -> Tensor:
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return quantize_8bit(torch.nn.functional.interpolate(coarse, size=size, mode="bilinear"))


# ------------------------------------------------------------------------------------------------------------- closed forms


def test_distance_of_moments_is_that_of_the_two_normal_distributions() -> None:
    """Vectors with exactly the wanted moments: whitened, then scaled and shifted."""
    raw = normal(200, 3)
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T.cov())).T
    scales, shift = torch.tensor([2.0, 0.5, 3.0]).double(), torch.tensor([1.0, -1.0, 0.0]).double()
    first, second = Moments(None, CPU), Moments(3, CPU)
    first.update(white)
    second.update(white * scales + shift)
    expected = shift.square().sum() + (scales - 1).square().sum()
    assert frechet_distance(*first.compute(), *second.compute()).item() == pytest.approx(expected.item(), rel=1e-9)
    with pytest.raises(ValueError, match="vectors of 4 numbers among ones of 3"):
        first.update(torch.zeros(2, 4))


def test_kernel_distance_is_the_mean_over_pairs() -> None:
    x, y = normal(5, 3), normal(7, 3, 1)
    kernel = lambda a, b: ((a @ b).item() / 3 + 1) ** 3  # noqa: E731
    within = [sum(kernel(a, b) for a, b in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1)) for s in (x, y)]
    across = sum(kernel(a, b) for a in x for b in y) / 35
    assert kernel_distance(x, y).item() == pytest.approx(sum(within) - 2 * across)


def test_kernel_distance_is_unbiased() -> None:
    """Over all pairs of subsets of a small world, drawn with replacement, its mean is the distance of the two worlds."""
    world, other = normal(3, 2), normal(3, 2, 1) + 0.5
    kernel = lambda a, b: (a @ b.T / 2 + 1) ** 3  # noqa: E731
    expected = kernel(world, world).mean() + kernel(other, other).mean() - 2 * kernel(world, other).mean()
    draws = list(itertools.product(range(3), repeat=2))
    found = [kernel_distance(world[list(a)], other[list(b)]) for a in draws for b in draws]
    assert torch.stack(found).mean().item() == pytest.approx(expected.item())


def test_subsets_have_the_mean_of_the_whole_and_are_the_same_every_time() -> None:
    x, y = normal(60, 4), normal(80, 4, 1) + 1
    whole = kernel_distance(x, y)
    assert mean_over_subsets(x, y, 0, 10) == whole == mean_over_subsets(x, y, 5, 80)
    many = [mean_over_subsets(x, y, 400, 20) for _ in range(2)]
    assert many[0] == many[1] != whole
    assert many[0].item() == pytest.approx(whole.item(), rel=0.05)


def test_precision_and_recall_of_the_same_and_of_other_sets() -> None:
    x = normal(50, 4)
    assert share_within(x, x) == 1
    assert share_within(x + 1000, x) == 0
    inside = torch.cat([x[:10], x[:30] + 1000])
    assert share_within(inside, x) == 0.25
    # On a line: the third neighbour of 0 is 3, of 10 it is 1, which is 9 away.
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    assert share_within(torch.tensor([[-3.0], [-3.1], [19.0], [19.1]]), line) == 0.5
    # Pictures that are there several times have balls of no size, in which they still lie.
    twice = torch.full((6, 3), 0.1)
    assert share_within(twice, twice) == 1


def test_precision_falls_with_wrong_pictures_and_recall_with_missing_ones() -> None:
    true = torch.cat([normal(40, 3), normal(40, 3, 1) + 100])
    half = true[:40] + 1e-3
    assert (share_within(half, true), share_within(true, half)) == (1, 0.5)
    more = torch.cat([true, normal(80, 3, 2) - 100])
    assert (share_within(more, true), share_within(true, more)) == (0.5, 1)


def test_distance_in_principal_components() -> None:
    """What differs outside of them is not seen; what differs inside is, as a distance of the projected moments."""
    true = pictures(40, channels=1, size=4)
    metric = create_metric({"type": "fd_pca", "dimensions": 3})
    metric.update(pictures(30, 1, size=4, channels=1), true)
    flat = true.flatten(1).double()
    _, _, axes = torch.linalg.svd(flat - flat.mean(0))
    one, two = pictures(30, 1, size=4, channels=1).flatten(1).double() @ axes[:3].T, flat @ axes[:3].T
    expected = frechet_distance(one.mean(0), one.T.cov(), two.mean(0), two.T.cov())
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-9)
    same = create_metric({"type": "fd_pca"})
    same.update(true, true)
    assert same.compute().item() == pytest.approx(0, abs=1e-9)
    assert principal_directions(torch.diag(torch.tensor([1.0, 0.0, 5.0]).double()), 3).shape == (3, 2)
    large = create_metric({"type": "fd_pca"})
    with pytest.raises(ValueError, match="set 'size: 32'"):
        large.update(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
    with pytest.raises(ValueError, match=r"predictions have 16 features and the pictures .* 48"):
        create_metric({"type": "fd_pca"}).update(true, pictures(40, size=4))


def test_features_of_the_same_pictures_are_computed_once(monkeypatch) -> None:
    metrics = [create_metric({"type": name, **SETS[name]}) for name in ("fd_mobilenetv2", "precision_mobilenetv2")]
    network, calls = metrics[0].features.network, []
    assert network is metrics[1].features.network
    forward = type(network).forward
    monkeypatch.setattr(type(network), "forward", lambda self, x: (calls.append(len(x)), forward(self, x))[1])
    made, true = pictures(4), pictures(4, 1)
    for metric in metrics:
        metric.update(made, true)
    assert len(calls) == 2
    made.mul_(0.5)
    metrics[0].update(made, true)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["kid", "precision", "recall"])
def test_metrics_in_inception_ask_for_its_weights(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("DLAS_WEIGHTS", raising=False)
    with pytest.raises(CheckpointError, match=rf"the metric '{name}' needs Inception-v3"):
        create_metric({"type": name})


def test_metrics_in_inception_run_with_a_file(tmp_path) -> None:
    from dlas.layers.classifiers.inception import FIDInception

    torch.manual_seed(0)
    file = tmp_path / "weights.pth"
    torch.save(FIDInception().state_dict(), file)
    made, true = pictures(6), pictures(6, 1)
    found = {}
    for name in ("fid", "kid", "precision", "recall"):
        metric = create_metric({"type": name, "load_path": str(file)})
        metric.update(made, true)
        found[name] = metric.compute().item()
    assert all(map(math.isfinite, found.values())), found


# ------------------------------------------------------------------------------------------------------- pieces and ranks


def test_rows_come_back_in_their_order() -> None:
    whole, first, second = (Rows(CPU) for _ in range(3))
    features = normal(12, 3)
    whole.update(features)
    for part, places in ((first, [4, 1]), (second, [0, 5, 2, 3])):
        part.update(torch.cat([features[2 * place : 2 * place + 2] for place in places]), places)
    second.merge(first)
    assert second.compute().equal(whole.compute()) and whole.count == second.count == 12
    assert Rows(CPU).compute().shape == (0, 0)


@pytest.mark.parametrize("name", SETS)
def test_pieces_in_any_order_make_the_whole(name) -> None:
    made, true = pictures(10), pictures(10, 1)
    whole, first, second = (create_metric({"type": name, **SETS[name]}) for _ in range(3))
    whole.update(made, true)
    for metric, places in ((first, [7, 2, 3]), (second, [9, 8, 0, 1, 4, 5, 6])):
        metric.update(made[places], true[places], places)
    first.merge(second)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-4, abs=1e-6)
    few = create_metric({"type": name, **SETS[name]})
    few.update(made[:1], true[:1])
    assert few.compute().isnan()


def _rank(rank: int, port: int, folder: str) -> None:
    """Measures every second picture; the first rank has a third more of them, and one metric none at all."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(_measured(list(range(rank, 12, 2)) + ([12, 13] if rank == 0 else [])), Path(folder) / f"{rank}.pt")
    empty = Rows(CPU)
    empty.update(torch.ones(2, 3)) if rank == 1 else None
    empty.synchronize()
    torch.save(empty.compute(), Path(folder) / f"rows{rank}.pt")
    torch.distributed.destroy_process_group()


def _measured(places: list[int]) -> dict[str, Tensor]:
    made, true = pictures(14), pictures(14, 1)
    found = {}
    for name, options in {**SETS, "psnr": {}}.items():
        metric = create_metric({"type": name, **options})
        for start in range(0, len(places), 4):
            some = places[start : start + 4]
            metric.update(made[some], true[some], *([some] if name in SETS else []))
        metric.synchronize()
        found[name] = metric.compute()
    return found


def test_two_ranks_measure_what_one_does(tmp_path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    alone = _measured(list(range(14)))
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            assert together[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-9), name
        assert torch.load(tmp_path / f"rows{rank}.pt", weights_only=True).equal(torch.ones(2, 3))


def test_without_other_ranks_nothing_is_communicated() -> None:
    average = Average()
    average.update(torch.tensor([1.0, 2.0]))
    average.synchronize()
    assert average.compute() == 1.5
    rows = normal(3, 2)
    assert gather(rows) is rows
    assert largest(3, CPU) == 3


# ---------------------------------------------------------------------------------------------------------- reference sets


def references(name: str, reference: Path | str) -> Tensor:
    """The metric of fixed predictions against a reference set."""
    metric = create_metric({"type": name, **SETS[name], "reference": str(reference)})
    sets = ReferenceSets(CPU)
    sets.check({name: metric})
    metric = create_metric({"type": name, **SETS[name], "reference": str(reference)})
    sets.give({name: metric})
    metric.update(pictures(8), torch.zeros(8, 3, 1, 1))
    return metric.compute()


def folder_of(path: Path, true: Tensor) -> Path:
    for number, picture in enumerate(true):
        write_png(path / f"{number:02d}.png", picture)
    return path


def write(tmp_path: Path, name: str, *arguments: str) -> Path:
    options = str({**SETS[name]}).replace("'", "").replace("True", "true")
    metrics = f"metrics: [{name}], metric_options: {{{name}: {options}}}"
    text = toys.PSNR.replace("metrics: [psnr, ssim_y]", metrics).replace("mode: toy_pairs}", "mode: toy_pairs, size: 32}")
    assert metrics in text
    (tmp_path / "e.yml").write_text(text)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    assert run_command("statistics", ["-opt", str(tmp_path / "e.yml"), "--metric", name, "-o", str(out), *arguments]) == 0
    (path,) = out.iterdir()
    return path


@pytest.mark.parametrize("name", SETS)
def test_a_reference_set_is_the_same_as_a_folder_and_as_a_file(name, tmp_path, capsys) -> None:
    true = pictures(9, 3)
    folder = folder_of(tmp_path / "true", true)
    plain = create_metric({"type": name, **SETS[name]})
    plain.update(torch.cat([pictures(8), pictures(1)]), true)
    expected = create_metric({"type": name, **SETS[name], "reference": "x"})
    expected.true = plain.true
    expected.update(pictures(8), pictures(8))
    path = write(tmp_path, name, "--pictures", str(folder))
    for reference in (folder, path):
        assert references(name, reference).item() == pytest.approx(expected.compute().item(), rel=1e-4, abs=1e-6)
    found = Statistics.read(path)
    assert found.pictures == 9
    assert path.name == f"{name}-{found.set_hash[:8]}.safetensors"
    assert f"9 pictures, set {found.set_hash[:16]}" in capsys.readouterr().out


def test_statistics_of_a_data_set_are_of_its_true_pictures(tmp_path) -> None:
    found = Statistics.read(write(tmp_path, "fd_pca", "--dataset", "val"))
    assert found.pictures == 2
    from dlas.data.base import Request

    data = toys.ToyPairs("val", size=32)
    true = torch.stack([quantize_8bit(data[Request(i, i, 0)]["hq"]) for i in range(2)])
    small = torch.nn.functional.adaptive_avg_pool2d(true.double(), 4).flatten(1)
    torch.testing.assert_close(found.moments.sum, small.sum(0))


def test_statistics_of_something_else_are_refused(tmp_path) -> None:
    folder = folder_of(tmp_path / "true", pictures(5, 3))
    path = write(tmp_path, "fd_mobilenetv2", "--pictures", str(folder))
    with pytest.raises(ConfigurationError, match=r"holds means and covariances.*--metric"):
        references("kd_mobilenetv2", path)
    with pytest.raises(ConfigurationError, match=r"fd_pca\.reference: .*statistics of other features \(mobilenet_v2"):
        references("fd_pca", path)
    metric = create_metric({"type": "fd_mobilenetv2", **RANDOM, "patch_size": 8, "reference": str(path)})
    with pytest.raises(ConfigurationError, match=r"patches 0; the metric compares .* patches 8"):
        ReferenceSets(CPU).check({"fd_mobilenetv2": metric})
    renamed = path.with_name("cifar-00000000.safetensors")
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="another set than its name says"):
        references("fd_mobilenetv2", renamed)
    renamed.with_name("any.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read as statistics"):
        references("fd_mobilenetv2", renamed.with_name("any.safetensors"))
    with pytest.raises(DataError, match=r"fd_pca\.reference: there is no .*nowhere"):
        references("fd_pca", tmp_path / "nowhere")


def test_the_hash_of_a_set_depends_on_its_pictures_alone(tmp_path) -> None:
    from dlas.engine.reference_sets import measure

    metric = create_metric({"type": "fd_pca", "size": 4})
    true = pictures(5)
    hashes = {measure(metric, pieces, "x", CPU).set_hash for pieces in ([true], [true[3:], true[:3]], true.split(2))}
    assert len(hashes) == 1
    other = true.clone()
    other[0, 0, 0, 0] = 1 - other[0, 0, 0, 0].round()
    assert measure(metric, [other], "x", CPU).set_hash not in hashes


def test_grey_files_are_one_channel(tmp_path) -> None:
    true = pictures(6, channels=1, size=8)
    folder_of(tmp_path, true)
    metric = create_metric({"type": "fd_pca", "reference": str(tmp_path)})
    ReferenceSets(CPU).give({"fd_pca": metric})
    metric.update(true, true)
    assert metric.compute().item() == pytest.approx(0, abs=1e-9)
