"""Metrics that are classes: learned distances, Fréchet distances, those without a true picture; and how runs measure them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toys
from dlas.config import check, load
from dlas.engine.testing import run_test
from dlas.errors import CheckpointError
from dlas.layers.classifiers import build_classifier, files
from dlas.layers.lpips import BACKBONES
from dlas.layers.resize import imresize
from dlas.metrics import create_metric, ms_ssim, psnr, quantize_8bit
from dlas.metrics.accumulators import Moments
from dlas.metrics.frechet import frechet_distance
from dlas.metrics.niqe import _parameters, niqe
from dlas.registry import METRICS
from oracles.inputs import heads, pair, pristine, weights
from runs import rows, trainer

ORACLES = json.loads((Path(__file__).parent / "oracles/values.json").read_text())
CPU = torch.device("cpu")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No weights are installed on this machine."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(files, "_in_package", lambda distribution, end: None)
    monkeypatch.delenv(files.VARIABLE, raising=False)


def saved(path: Path, tensors: dict[str, Tensor]) -> str:
    torch.save(tensors, path)
    return str(path)


# --------------------------------------------------------------------------------------------------- numbers of other libraries


def test_ms_ssim_is_that_of_another_library():
    true, made = pair()
    found = METRICS.create("ms_ssim", {}, made.double(), true.double())
    assert found.tolist() == pytest.approx(ORACLES["similarity"]["ms_ssim"], abs=1e-5)
    grey = torch.tensor([65.481, 128.553, 24.966]) / 255
    luma = [(image * grey[:, None, None]).sum(1, keepdim=True) + 16 / 255 for image in (made, true)]
    torch.testing.assert_close(METRICS.create("ms_ssim_y", {}, made, true), ms_ssim(*luma), rtol=1e-5, atol=1e-6)
    assert ms_ssim(true, true).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="at least 161x161 pixels, not 160x208"):
        ms_ssim(made[..., :160, :], true[..., :160, :])


@pytest.mark.parametrize("net", BACKBONES)
def test_lpips_is_that_of_its_authors(net, tmp_path, nowhere):
    name, layers, channels = BACKBONES[net]
    network = build_classifier(name, layers)
    backbone = saved(tmp_path / "backbone.pth", weights(network.state_dict()))
    told = {f"lin{i}.model.1.weight": head.view(1, -1, 1, 1) for i, head in enumerate(heads(channels))}
    options = {"type": "lpips", "net": net, "load_path": backbone, "heads_path": saved(tmp_path / "heads.pth", told)}
    metric = create_metric(options)
    true, made = pair(96, 128)
    assert metric.update(made, true).tolist() == pytest.approx(ORACLES["learned"][net], rel=1e-4)
    assert metric.compute().item() == pytest.approx(sum(ORACLES["learned"][net]) / 2, rel=1e-4)


def test_dists_is_that_of_its_authors(tmp_path, nowhere):
    network = build_classifier("vgg16", BACKBONES["vgg"][1])
    alpha = heads((1475,))[0]
    told = {"alpha": alpha.view(1, -1, 1, 1), "beta": alpha.flip(0).view(1, -1, 1, 1)}
    metric = create_metric(
        {
            "type": "dists",
            "load_path": saved(tmp_path / "vgg.pth", weights(network.state_dict())),
            "weights_path": saved(tmp_path / "dists.pt", told),
        }
    )
    true, made = pair(96, 128)
    assert metric.update(made, true).tolist() == pytest.approx(ORACLES["learned"]["dists"], rel=1e-3)


def test_niqe_is_that_of_basicsr(tmp_path):
    mean, covariance = pristine()
    np.savez(tmp_path / "pristine.npz", mu_pris_param=mean, cov_pris_param=covariance)
    metric = create_metric({"type": "niqe", "load_path": str(tmp_path / "pristine.npz"), "crop_border": 4})
    picture = quantize_8bit(pair(210, 300)[0][:1])
    assert metric.update(picture, picture).item() == pytest.approx(ORACLES["basicsr"]["niqe"], rel=1e-4)
    with pytest.raises(ValueError, match="at least two blocks of 96x96"):
        metric.update(picture[..., :120, :150], picture)


def test_parameters_of_niqe_may_be_the_authors_file(tmp_path):
    from scipy.io import savemat

    mean, covariance = pristine()
    savemat(tmp_path / "modelparameters.mat", {"mu_prisparam": mean, "cov_prisparam": covariance})
    found = _parameters(tmp_path / "modelparameters.mat")
    assert found[0].equal(torch.from_numpy(mean).flatten())
    np.savez(tmp_path / "other.npz", mu_pris_param=mean[:, :30], cov_pris_param=covariance)
    with pytest.raises(CheckpointError, match="expected mu_pris_param of 36 numbers"):
        _parameters(tmp_path / "other.npz")
    (tmp_path / "damaged.npz").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be read as parameters"):
        _parameters(tmp_path / "damaged.npz")


def test_niqe_of_a_picture_that_is_the_model_is_small():
    picture = pair(200, 300)[0][0, 0].double() * 255
    mean, covariance = torch.rand(36, dtype=torch.float64), torch.eye(36, dtype=torch.float64)
    far = niqe(picture, mean + 5, covariance)
    assert far > niqe(picture, mean, covariance) > 0


# ------------------------------------------------------------------------------------------------------------ Fréchet distances


def test_frechet_distance_of_normal_distributions():
    double = {"dtype": torch.float64}
    one, zero = torch.eye(3, **double), torch.zeros(3, **double)
    assert frechet_distance(zero, one, zero, one).item() == pytest.approx(0, abs=1e-9)
    assert frechet_distance(zero, one, zero + 2, one).item() == pytest.approx(12)
    assert frechet_distance(zero, one, zero, 4 * one).item() == pytest.approx(3)
    draw = torch.Generator().manual_seed(0)
    roots = [torch.randn(4, 4, generator=draw, **double) for _ in range(2)]
    first, second = (root @ root.T for root in roots)
    values = torch.linalg.eigvals(first @ second).real.clamp_min(0).sqrt().sum()
    means = torch.zeros(4, **double)
    found = frechet_distance(means, first, means, second)
    assert found.item() == pytest.approx((first.trace() + second.trace() - 2 * values).item())
    flat = torch.zeros(4, 4, **double)
    flat[0, 0] = 9
    assert frechet_distance(means, flat, means, flat).item() == pytest.approx(0, abs=1e-9)


def test_moments_do_not_depend_on_the_pieces():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=draw, dtype=torch.float64) + 100
    whole, first, second = (Moments(6, CPU) for _ in range(3))
    whole.update(features)
    first.update(features[:13])
    second.update(features[13:])
    first.merge(second)
    for found in (whole, first):
        mean, covariance = found.compute()
        torch.testing.assert_close(mean, features.mean(0))
        torch.testing.assert_close(covariance, features.T.cov(), rtol=1e-7, atol=1e-7)


def test_frechet_distance_in_features_of_mobilenet(nowhere):
    true, made = pair(96, 128)
    metric = create_metric({"type": "fd_mobilenetv2", "random_weights": True, "patch_size": 32})
    assert metric.update(made, true) is None
    assert metric.predicted.count == 2 * 3 * 4
    distance = metric.compute()
    network = metric.features.network
    cut = [image.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32) for image in (made, true)]
    first, second = (network(network.normalize(each))["features.18"].mean((2, 3)).double() for each in cut)
    centred = [each - each.mean(0) for each in (first, second)]
    # Of few vectors: the trace of the root is the sum of the singular values of the small matrix of their products.
    shared = torch.linalg.svdvals(centred[0] @ centred[1].T).sum() / 23
    spread = sum(each.square().sum() for each in centred) / 23
    expected = (first.mean(0) - second.mean(0)).square().sum() + spread - 2 * shared
    torch.testing.assert_close(distance, expected, rtol=1e-4, atol=1e-8)
    halves = [create_metric({"type": "fd_mobilenetv2", "random_weights": True, "patch_size": 32}) for _ in range(2)]
    for part, half in enumerate(halves):
        half.update(made[part : part + 1], true[part : part + 1])
    halves[0].merge(halves[1])
    torch.testing.assert_close(halves[0].true.compute(), metric.true.compute(), rtol=1e-3, atol=1e-5)
    same = create_metric({"type": "fd_mobilenetv2", "random_weights": True, "patch_size": 32})
    same.update(true, true)
    assert same.compute().item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="patch_size 32 is larger"):
        same.update(true[..., :20], true)
    one = create_metric({"type": "fd_mobilenetv2", "random_weights": True})
    one.update(true[:1], true[:1])
    assert math.isnan(one.compute())


def test_fid_asks_for_the_published_weights(nowhere):
    with pytest.raises(CheckpointError, match=r"the metric 'fid' needs Inception-v3 .* pt_inception-2015-12-05-6726825d\.pth"):
        create_metric({"type": "fid"})


# ---------------------------------------------------------------------------------------------------------------- closed forms


def test_distance_in_features_of_mobilenet(nowhere):
    true, made = pair(64, 96)
    metric = create_metric({"type": "pd_mobilenetv2", "random_weights": True, "crop_border": 2})
    assert metric.update(true, true).tolist() == [0, 0]
    better = metric.update(0.8 * true + 0.2 * made, true)
    worse = metric.update(made, true)
    assert (worse > better).all()
    other = create_metric({"type": "pd_mobilenetv2", "random_weights": True, "crop_border": 2})
    other.update(made, true)
    metric.merge(other)
    assert metric.compute().item() == pytest.approx((better.sum() + 2 * worse.sum()).item() / 8, rel=1e-5)


def test_lr_psnr_is_that_of_the_downscaled_output():
    _, output = pair(48, 64)
    output = quantize_8bit(output)
    small = quantize_8bit(imresize(output.double(), 0.25))
    metric = create_metric({"type": "lr_psnr"})
    assert metric.update(output, small).tolist() == [math.inf, math.inf]
    other = quantize_8bit(small + 4 / 255)
    torch.testing.assert_close(create_metric({"type": "lr_psnr"}).update(output, other), psnr(small, other))
    cropped = create_metric({"type": "lr_psnr", "border": 2}).update(output, other)
    torch.testing.assert_close(cropped, psnr(small, other, 2))
    with pytest.raises(ValueError, match="one factor must lead from the 12x15 input"):
        metric.update(output, small[..., :-1])


def test_sharpness_is_one_for_the_truth_and_below_for_blur():
    true, _ = pair(48, 64)
    blurred = nn.functional.avg_pool2d(true, 3, 1, padding=1, count_include_pad=False)
    sharper = (2 * true - blurred).clamp(0, 1)
    measure = lambda image, **o: METRICS.create("sharpness", o, image, true)  # noqa: E731
    assert measure(true).tolist() == [1, 1]
    assert (measure(blurred) < 0.95).all()
    assert (measure(sharper) > 1.05).all()
    half = 0.5 * true + 0.25
    assert measure(half, crop_border=2).tolist() == pytest.approx([0.5, 0.5], rel=1e-4)


def test_gradient_w1_forgives_where_gradients_are():
    true, _ = pair(48, 64)
    metric = create_metric({"type": "gradient_w1"})
    assert metric.update(true.flip(-1), true).tolist() == pytest.approx([0, 0], abs=1e-9)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32) / 255
    assert metric.update(3 * ramp, ramp).item() == pytest.approx(2, rel=1e-4)
    assert metric.update(0 * ramp, ramp).item() == pytest.approx(1, rel=1e-4)


def test_which_way_is_better_is_told_without_importing():
    lower = {"lpips", "dists", "niqe", "fid", "fd_mobilenetv2", "pd_mobilenetv2", "gradient_w1"}
    lower |= {"fd_features", "fd_pca", "kid", "kd_mobilenetv2"}
    lower |= {"f0_error", "mel_cepstral_distortion", "multi_resolution_stft", "voicing_error"}
    for name, entry in METRICS.entries().items():
        assert entry.attributes.get("higher_is_better", True) == (name not in lower), name


# --------------------------------------------------------------------------------------------------------------------- in a run


def test_a_run_measures_them_and_takes_their_options(tmp_path, nowhere):
    options = [
        "eval.metrics=[psnr_y, lr_psnr, pd_mobilenetv2, fd_mobilenetv2, sharpness]",
        "eval.metric_options={pd_mobilenetv2: {random_weights: true, crop_border: 0}, "
        "fd_mobilenetv2: {random_weights: true, patch_size: 8}}",
        "train.niter=2",
    ]
    trainer(tmp_path, toys.PSNR, *options).run()
    row = rows(tmp_path / "toy", "val")[-1]
    for name in ("psnr_y", "lr_psnr", "pd_mobilenetv2", "fd_mobilenetv2", "sharpness"):
        assert math.isfinite(row[name])
        assert math.isfinite(row[f"bicubic_{name}"])
    assert row["bicubic_lr_psnr"] > 20
    test = tmp_path / "e.yml"
    test.write_text("name: e\ndatasets:\n  val: {mode: toy_pairs}\neval: {metrics: [lr_psnr]}\n")
    result = run_test(load(test, [f"path.run={tmp_path}/toy", f"path.experiments={tmp_path}"], mode="test"))
    assert result["val"].means.keys() == {"lr_psnr", "bicubic_lr_psnr"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{lpips: {net: vgg}}", "'lpips' is not measured"),
        ("{psnr: {crop: 2}}", "metric 'psnr' has no option 'crop'"),
        ("{psnr: {crop_border: -2}}", "at least 0"),
        ("{psnr: 3}", "expected"),
    ],
)
def test_wrong_options_of_metrics_are_found_in_the_file(options, message, tmp_path):
    path = tmp_path / "file.yml"
    path.write_text(toys.PSNR)
    assert any(message in p.message for p in check(path, [f"eval.metric_options={options}"]))
    assert check(path, ["eval.metric_options={psnr: {crop_border: 3}}"]) == []
