"""Degradations: what recipes hold, that both ways of carrying them out agree, and that samples do not touch each other."""

from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dlas.config import check
from dlas.context import Context
from dlas.data.base import Request, create_dataset
from dlas.degradations import create_degradation, device, host
from dlas.degradations.base import Blur, Degradation, GaussianNoise, Jpeg, PoissonNoise, Resize, Sharpen
from dlas.degradations.kernels import bivariate_gaussian, bivariate_plateau, circular_lowpass, identity, padded
from dlas.errors import ConfigurationError, UserError
from dlas.injectors import create_injector
from dlas.registry import DEGRADATIONS

KINDS = sorted(DEGRADATIONS.entries())


@DEGRADATIONS.register("toy_area")
class Area(Degradation):
    """Nothing but the mean over pixels."""

    def __init__(self) -> None: ...

    def draw(self, rng, height, width, scale):
        return [Resize(height // scale, width // scale, "area")]


def photograph(height=96, width=120):
    """Smooth, with edges, in [0, 1]."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(rows / 7 + k) * np.cos(columns / (5 + k)) for k in range(3)]
    image = np.stack(waves, axis=2) / 4 + 0.5
    image[height // 3 : height // 2, width // 4 : width // 2] = (0.9, 0.2, 0.4)
    return np.ascontiguousarray(image, np.float32)


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_recipes_end_at_the_low_quality_size_on_both_backends(kind, scale):
    degradation, image = create_degradation({"type": kind}), photograph()
    height, width = image.shape[:2]
    for seed in range(8):
        recipe = degradation.draw(np.random.default_rng(seed), height, width, scale)
        low = host.degrade(image, recipe, np.random.default_rng(seed))
        assert low.shape == (height // scale, width // scale, 3)
        assert low.dtype == np.float32
        assert low.min() >= 0
        assert low.max() <= 1
        assert np.allclose(low * 255, np.round(low * 255), atol=1e-4)
    batch = device.degrade(tensor(image), [recipe], [7])
    assert batch.shape == (1, 3, height // scale, width // scale)
    assert 0 <= batch.min() <= batch.max() <= 1
    assert all(str(operation) for operation in recipe)


@pytest.mark.parametrize(
    "operation",
    [
        Blur(bivariate_gaussian(9, 1.5, 0.7, 0.4), "gaussian"),
        Blur(circular_lowpass(21, 1.7), "sinc"),
        Blur(bivariate_plateau(13, 2, 1, -1, 1.5), "plateau"),
        Resize(41, 77, "area"),
        Resize(150, 133, "area"),
        Resize(41, 77, "bilinear"),
        Resize(130, 150, "bicubic"),
        Resize(60, 75, "bicubic", 0.63),
        Resize(96, 120, "bilinear"),
        Sharpen(),
        Sharpen(1.0, 4.0, 21),
    ],
    ids=str,
)
def test_both_backends_do_the_same(operation):
    image = photograph()
    generator = torch.Generator()
    one = host.apply(image, operation, generator)
    two = device.apply(tensor(image), operation, generator)[0].permute(1, 2, 0).numpy()
    assert one.shape == two.shape
    assert np.abs(one - two).max() < 2e-5


@pytest.mark.parametrize("quality", [20, 50])
def test_the_jpeg_of_tensors_is_a_real_one(quality):
    # Of a grey picture, since codecs differ in how they bring chroma back to full size. The published arithmetic has the
    # luminance table on its side: it does to a picture what the codec does to the picture lying on its side.
    image = np.repeat(photograph()[:, :, :1], 3, axis=2)
    image = (np.round(image * 255) / 255).astype(np.float32)
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))
    real = host.apply(turned, Jpeg(quality), torch.Generator()).transpose(1, 0, 2)
    ours = device.apply(tensor(image), Jpeg(quality), torch.Generator())[0].permute(1, 2, 0).numpy()
    # A few coefficients lie half-way between two steps, and integer and float arithmetic round them differently.
    assert np.sqrt(np.mean((real - ours) ** 2)) < 0.3 * np.sqrt(np.mean((real - image) ** 2))


@pytest.mark.parametrize("backend", ["host", "device"])
@pytest.mark.parametrize("gray", [True, False])
def test_noise_has_the_strength_it_says(backend, gray):
    flat = np.full((200, 200, 3), 0.5, np.float32)
    flat[0, :64] = (np.arange(64)[:, None] * 4 + np.zeros(3)) / 255  # so that there are many levels

    def apply(operation):
        generator = torch.Generator().manual_seed(1)
        if backend == "host":
            return host.apply(flat, operation, generator)[1:] - 0.5
        return device.apply(tensor(flat), operation, generator)[0].permute(1, 2, 0).numpy()[1:] - 0.5

    noise = apply(GaussianNoise(20, gray))
    assert noise.std() * 255 == pytest.approx(20, rel=0.02)
    assert np.allclose(noise[..., 0], noise[..., 1], atol=1e-6) == gray
    noise = apply(PoissonNoise(0.5, gray))
    # The variance of a Poisson count is its mean. There are 64 values; in the luma a 65th, by rounding.
    assert noise.std() == pytest.approx(0.5 * np.sqrt(0.5 / (128 if gray else 64)), rel=0.03)
    assert np.allclose(noise[..., 0], noise[..., 1], atol=1e-6) == gray


def test_what_is_drawn_follows_the_probabilities():
    degradation, count = create_degradation({"type": "realesrgan"}), 1500
    families, noises, directions, second = Counter(), Counter(), Counter(), 0
    for seed in range(count):
        recipe = degradation.draw(np.random.default_rng(seed), 400, 400, 4)
        blurs = [each for each in recipe if isinstance(each, Blur)]
        families[blurs[0].name.split()[0]] += 1
        noises.update(type(each).__name__ for each in recipe if isinstance(each, GaussianNoise | PoissonNoise))
        first = next(each for each in recipe if isinstance(each, Resize))
        directions[(first.height > 400) - (first.height < 400)] += 1
        jpeg = [i for i, each in enumerate(recipe) if isinstance(each, Jpeg)]
        assert len(jpeg) == 2
        second += jpeg[1] == len(recipe) - 1
    wanted = {"sinc": 0.1, "iso": 0.45 * 0.9, "aniso": 0.25 * 0.9, "plateau_aniso": 0.03 * 0.9, "generalized_iso": 0.12 * 0.9}
    for name, share in wanted.items():  # within four standard deviations
        assert abs(families[name] / count - share) < 4 * np.sqrt(share * (1 - share) / count), name
    assert abs(noises["GaussianNoise"] / (2 * count) - 0.5) < 4 * np.sqrt(0.25 / (2 * count))
    assert abs(directions[-1] / count - 0.7) < 4 * np.sqrt(0.21 / count)
    assert abs(second / count - 0.5) < 4 * np.sqrt(0.25 / count)


def test_kernels_sum_to_one_and_pad_in_the_middle():
    for kernel in (bivariate_gaussian(7, 1, 2, 0.3), bivariate_plateau(21, 3, 1, 1, 0.8), circular_lowpass(13, 2.5)):
        assert kernel.sum() == pytest.approx(1)
        bigger = padded(kernel, 25)
        assert bigger.shape == (25, 25)
        assert np.array_equal(
            bigger[12 - len(kernel) // 2 : 13 + len(kernel) // 2][:, 12 - len(kernel) // 2 : 13 + len(kernel) // 2], kernel
        )
    image = photograph()
    assert np.allclose(host.apply(image, Blur(identity(21), "identity"), torch.Generator()), image, atol=1e-5)


def test_a_ramp_stays_in_place_when_resizing_is_aligned():
    ramp = np.repeat(np.linspace(0, 1, 400, dtype=np.float32)[None, :, None], 400, axis=0).repeat(3, axis=2)
    still = {"gt_usm": False, "sinc_prob": 0, "sinc_prob2": 0, "final_sinc_prob": 0, "blur_sigma": [0.2, 0.2]}
    quiet = {"noise_range": [0, 0], "noise_range2": [0, 0], "gaussian_noise_prob": 1, "gaussian_noise_prob2": 1}
    clean = {"jpeg_range": [100, 100], "jpeg_range2": [100, 100], "resize_prob": [0, 1, 0], "second_blur_prob": 0}
    small = {"resize_range": [0.151, 0.2], "kernel_list": ["iso"], "kernel_prob": [1]}
    wanted = ramp.reshape(100, 4, 100, 4, 3).mean(axis=(1, 3))

    def worst(aligned):
        degradation = create_degradation({"type": "realesrgan", "aligned": aligned, **still, **quiet, **clean, **small})
        errors = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            low = host.degrade(ramp, degradation.draw(rng, 400, 400, 4), rng)
            errors.append(np.abs(low - wanted)[:, 8:-8].max())
        return max(errors)

    assert worst(aligned=True) < 0.012  # 8-bit rounding, JPEG at quality 100 and the small size leave under five pixels of 400
    assert worst(aligned=False) > worst(aligned=True)


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        pixels = (photograph(90 + 10 * index, 140) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def degraded(folder, phase="train", **options):
    settings = {"mode": "degraded_images", "dataroot_gt": str(folder), "scale": 4, "target_size": 32, "degradation_size": 64}
    return create_dataset({**settings, "degradation": {"type": "realesrgan"}, **options}, phase=phase, name="photos")


def test_a_sample_depends_on_its_place_in_the_order_alone(folder):
    first, second = degraded(folder), degraded(folder, cache="memory")
    one, again = first[Request(1, 17, 5)], second[Request(1, 17, 5)]
    assert one.keys() == again.keys() == {"lq", "hq", "hq_usm", "recipe", "path"}
    assert one["lq"].equal(again["lq"])
    assert one["recipe"] == again["recipe"]
    other = first[Request(1, 20, 5)]
    assert other["recipe"] != one["recipe"]
    assert one["lq"].shape == (3, 8, 8)
    assert one["hq"].shape == one["hq_usm"].shape == (3, 32, 32)
    assert not one["hq"].equal(one["hq_usm"])


@pytest.mark.parametrize("options", [{}, {"use_rot": True}, {"degradation_size": 160}, {"degradation_size": 32}])
def test_low_and_high_quality_crops_belong_together(folder, options):
    dataset = degraded(folder, degradation={"type": "toy_area"}, **options)
    for position in range(6):
        sample = dataset[Request(position % 3, position, 0)]
        mean = torch.nn.functional.avg_pool2d(sample["hq"], 4)
        assert (mean - sample["lq"]).abs().max() <= 0.5 / 255 + 1e-6
        assert sample["hq"].equal(sample["hq_usm"])


def test_validation_gives_whole_images_the_same_every_time(folder):
    dataset = degraded(folder, phase="val")
    sample = dataset[Request(2, 2, 0)]
    assert sample["hq"].shape == (3, 108, 140)
    assert sample["lq"].shape == (3, 27, 35)
    assert sample["name"] == "2"
    assert sample["lq"].equal(dataset[Request(2, 2, 0)]["lq"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": 30}, r"target_size 30 must be a multiple of scale 4; take 32"),
        ({"degradation_size": 16}, "degradation_size 16 is smaller than target_size 32"),
        ({"degradation": {"type": "realesrgan", "kernel_prob": [1.0]}}, "kernel_prob: .*expected 6 probabilities"),
        ({"degradation": {"type": "realesrgan", "resize_range": [2, 1]}}, "resize_range: .*smallest, largest"),
        ({"degradation": {"type": "realesrgan", "kernel_list": ["round"]}}, "kernel_list: .*round"),
        ({"degradation": {"type": "realesrgan", "blur_kernel_size": 8}}, "blur_kernel_size must be odd"),
        ({"degradation": {"type": "realesrgn"}}, "realesrgn"),
        ({"degradation": {}}, "needs a type"),
        ({"target_size": 128, "degradation_size": 128}, "expected 128 x 128 at least"),
    ],
)
def test_what_cannot_be_is_refused(folder, options, message):
    with pytest.raises(UserError, match=message):
        degraded(folder, **options)[Request(0, 0, 0)]


def test_the_checker_sees_the_options_of_a_degradation(tmp_path):
    path = tmp_path / "options.yml"
    path.write_text(
        "name: x\nscale: 4\ndatasets:\n  val:\n    mode: degraded_images\n    dataroot_gt: photos\n    degradation:\n"
        "      type: realesrgan\n      sinc_probb: 0.2\n      gt_usm: 3\n"
    )
    problems = [(p.mark.line, p.path, p.message, p.fix) for p in check(path) if p.path.startswith("datasets")]
    assert problems[0][:3] == (9, "datasets.val.degradation.sinc_probb", "degradation 'realesrgan' has no option 'sinc_probb'")
    assert "sinc_prob" in problems[0][3]
    assert problems[1][0] == 10
    path.write_text(path.read_text().replace("type: realesrgan", "type: realesrgn"))
    assert any("no degradation is called 'realesrgn'" in p.message and "realesrgan" in p.fix for p in check(path))


def injector(**options):
    return create_injector(
        {"type": "degrade", "in": "hq", "out": "lq", "scale": 4, "degradation": {"type": "realesrgan"}, **options}
    )


def test_the_injector_treats_each_sample_by_itself():
    images = torch.cat([tensor(photograph()), tensor(photograph()[::-1].copy())])
    together = injector()({"hq": images}, Context({}, seed=3, positions=[40, 41]))["lq"]
    alone = injector()({"hq": images[1:]}, Context({}, seed=3, positions=[41]))["lq"]
    assert together.shape == (2, 3, 24, 30)
    assert together[1:].equal(alone)
    assert not together[:1].equal(injector()({"hq": images[:1]}, Context({}, seed=3, positions=[42]))["lq"])


def test_the_injector_cuts_pairs_that_belong_together():
    cut = injector(degradation={"type": "toy_area"}, target_size=40, out_hq="crop")
    images = torch.cat([tensor(photograph())] * 3)
    out = cut({"hq": images}, Context({}, seed=3, positions=[1, 2, 3]))
    assert out["crop"].shape == (3, 3, 40, 40)
    assert (torch.nn.functional.avg_pool2d(out["crop"], 4) - out["lq"]).abs().max() <= 0.5 / 255 + 1e-6
    assert not out["crop"][0].equal(out["crop"][1])


def test_the_injector_refuses_sizes_that_do_not_go_together():
    with pytest.raises(ConfigurationError, match="needs 'out_hq'"):
        injector(target_size=40)
    with pytest.raises(ConfigurationError, match="121 x 96 pixels; expected multiples of scale 4"):
        injector()({"hq": torch.rand(1, 3, 96, 121)}, Context({}, positions=[0]))
    with pytest.raises(ConfigurationError, match="target_size 200 is larger"):
        injector(target_size=200, out_hq="crop")({"hq": torch.rand(1, 3, 96, 120)}, Context({}, positions=[0]))


@pytest.mark.parametrize(("height", "width"), [(12, 9), (30, 4), (2, 2)])
def test_images_smaller_than_a_kernel_are_mirrored_as_often_as_it_takes(height, width):
    image = photograph()[:height, :width].copy()
    for operation in (Blur(bivariate_gaussian(21, 4, 2, 0.5), "gaussian"), Sharpen()):
        one = host.apply(image, operation, torch.Generator())
        two = device.apply(tensor(image), operation, torch.Generator())[0].permute(1, 2, 0).numpy()
        assert np.abs(one - two).max() < 2e-5


def test_opencv_leaves_its_input_alone():
    image = photograph()
    copy = image.copy()
    recipe = create_degradation({"type": "realesrgan"}).draw(np.random.default_rng(0), 96, 120, 4)
    host.degrade(image, recipe, np.random.default_rng(0))
    assert np.array_equal(image, copy)
    assert cv2.__version__
