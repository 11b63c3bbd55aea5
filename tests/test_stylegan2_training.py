"""Training of StyleGAN2: its adversarial loss, augmentations that adapt, and averages with a half-life in samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.config import load
from dlas.config.schema import EmaConfig
from dlas.context import Context
from dlas.engine.averages import Averages
from dlas.engine.trainer import Trainer
from dlas.errors import ConfigurationError
from dlas.layers.augment import AUGMENTATIONS
from dlas.layers.augment.color import color_maps
from dlas.layers.augment.geometry import SYM6, resampled, sample
from dlas.losses import create_loss
from resume.test_registry import assert_resumes

ADA = ("blit", "geometry", "color")
NEVER, ALWAYS = torch.tensor(0.0), torch.tensor(1.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Judge(nn.Module):
    """A logit a picture, of a gradient that differs from picture to picture."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).square().mean((1, 2, 3))[:, None] - 1


def divergence(side: str, *, step: int = 0, **more: Any) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], nn.Module]:
    judge = Judge()
    state = {"real": torch.randn(4, 3, 8, 8, requires_grad=True), "fake": torch.randn(4, 3, 8, 8, requires_grad=True)}
    options = {"type": "stylegan2_divergence", "real": "real", "fake": "fake", "discriminator": "d"}
    loss = create_loss(options | {"gen_loss": side == "generator"} | more)
    value, logged = loss(state, Context({"d": judge}, step=step, positions=(0, 1, 2, 3)))
    value.backward()
    return value.detach(), logged, state, judge


def test_the_logistic_form_is_that_of_stylegan2_and_more_is_more_real() -> None:
    value, logged, state, judge = divergence("discriminator", logistic=True)
    real, fake = judge(state["real"]), judge(state["fake"])
    torch.testing.assert_close(value, (F.softplus(-real) + F.softplus(fake)).mean())
    torch.testing.assert_close(logged["d_real"], real.mean())
    assert state["fake"].grad is None
    assert state["real"].grad is None
    value, _, state, judge = divergence("generator", logistic=True)
    torch.testing.assert_close(value, F.softplus(-judge(state["fake"])).mean())
    assert state["fake"].grad is not None


def test_the_other_form_is_a_hinge_loss_in_which_less_is_more_real() -> None:
    value, logged, state, judge = divergence("discriminator")
    real, fake = judge(state["real"]), judge(state["fake"])
    torch.testing.assert_close(value, (F.relu(1 + real) + F.relu(1 - fake)).mean())
    torch.testing.assert_close(logged["d_fake"], fake.mean())
    value, _, state, judge = divergence("generator")
    torch.testing.assert_close(value, judge(state["fake"]).mean())


def test_its_penalty_comes_in_some_iterations_and_never_with_the_logistic_form() -> None:
    _, logged, state, judge = divergence("discriminator", step=8, gradient_penalty_frequency=4)
    real = state["real"].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(real).sum(), real)
    expected = 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(logged["gradient_penalty"], expected)
    assert "gradient_penalty" not in divergence("discriminator", step=9, gradient_penalty_frequency=4)[1]
    assert "gradient_penalty" not in divergence("discriminator", step=8, gradient_penalty_frequency=4, logistic=True)[1]


# ------------------------------------------------------------------------------------------------------------- augmentations


def pictures(count: int = 4, side: int = 16, channels: int = 3) -> Tensor:
    """Smooth, in [-1, 1]."""
    return F.interpolate(torch.rand(count, channels, 4, 4) * 2 - 1, size=side, mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_never_happens_changes_nothing_and_what_happens_is_a_function_of_the_seed(name: str, channels: int) -> None:
    x, augment = pictures(channels=channels), AUGMENTATIONS[name]
    torch.testing.assert_close(augment(x, NEVER), x, rtol=0, atol=2e-5)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(augment(x, ALWAYS))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert runs[0].shape == x.shape
    assert not torch.equal(runs[0], x)


def test_the_filter_is_that_of_an_orthogonal_wavelet() -> None:
    taps = torch.tensor(SYM6)
    assert taps.square().sum().item() == pytest.approx(1, abs=1e-6)
    assert all((taps[2 * n :] * taps[: 12 - 2 * n]).sum().abs() < 1e-6 for n in range(1, 6))


@pytest.mark.parametrize("sides", [(16, 16), (16, 24)])
def test_blit_moves_pixels_and_makes_none(sides: tuple[int, int]) -> None:
    x = torch.arange(sides[0] * sides[1], dtype=torch.float32).view(1, 1, *sides).repeat(64, 1, 1, 1)
    found = AUGMENTATIONS["blit"](x, ALWAYS)
    assert len({tuple(each.flatten().tolist()) for each in found}) > 32
    for each in found:
        assert {*each.flatten().tolist()} <= {*x[0].flatten().tolist()}
        middle = each[0, 4:-4, 4:-4]  # what a shift of an eighth leaves whole: neighbours stay neighbours
        steps = {abs(middle.diff(dim=0)[0, 0].item()), abs(middle.diff(dim=1)[0, 0].item())}
        assert steps == {1, sides[1]}


def test_resampling_turns_shifts_and_mirrors() -> None:
    x = pictures(2, 32)
    eye = torch.eye(2).expand(2, 2, 2)
    moved = resampled(x, eye, torch.tensor([[3.0, -5.0]] * 2))  # to the left by 3, down by 5
    torch.testing.assert_close(moved[:, :, 5:, :-3], x[:, :, :-5, 3:], rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[:, :, :5, :-3].flip(2), x[:, :, 1:6, 3:], rtol=0, atol=0.02)  # mirrored there
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).expand(2, 2, 2)
    turned = resampled(x, quarter, torch.zeros(2, 2))
    assert (turned - x.rot90(1, (-2, -1))).abs().mean() < 0.02 < (turned - x).abs().mean()
    smaller = resampled(x, 2 * eye, torch.zeros(2, 2))[:, :, 8:24, 8:24]
    assert (smaller - F.avg_pool2d(x, 2)).abs().mean() < 0.02


def test_sampling_can_be_differentiated_twice() -> None:
    x, grid = torch.randn(1, 2, 4, 5).double().requires_grad_(), torch.rand(1, 3, 3, 2).double() * 2 - 1
    assert torch.equal(sample(x, grid), F.grid_sample(x, grid, align_corners=False))
    assert torch.autograd.gradcheck(lambda x: sample(x, grid).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: sample(x, grid).pow(3), x)


def test_colors_keep_grey_grey_and_grey_pictures_are_those_of_color_ones() -> None:
    matrix, offset = color_maps(ALWAYS, 64)
    made = matrix @ torch.full((3, 1), 0.5)
    torch.testing.assert_close(made, made.mean(1, keepdim=True).expand(-1, 3, 1))
    assert 16 < (matrix.sum((1, 2)) < 0).sum() < 48  # inverted
    assert offset.std() > 0.05
    grey, augment = pictures(channels=1), AUGMENTATIONS["color"]
    torch.manual_seed(3)
    of_color = augment(grey.expand(-1, 3, -1, -1), ALWAYS)
    torch.manual_seed(3)
    torch.testing.assert_close(augment(grey, ALWAYS), of_color[:, :1])
    with pytest.raises(ValueError, match="for 1 or 3 channels, got 4"):
        augment(torch.zeros(1, 4, 8, 8), ALWAYS)


def test_cutouts_are_half_as_high_and_wide_and_zeros_are_shifted_in() -> None:
    x = torch.ones(32, 3, 16, 16)
    holes = (AUGMENTATIONS["diff_cutout"](x, ALWAYS) == 0)[:, 0]
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert heights.max() == widths.max() == 8
    assert heights.min() >= 4
    assert torch.equal(holes.sum((1, 2)), heights * widths)
    lost = (AUGMENTATIONS["diff_translation"](x, ALWAYS) == 0)[:, 0]
    assert lost.all(2).sum(1).max() == lost.all(1).sum(1).max() == 2  # an eighth


# ---------------------------------------------------------------------------------------------- a discriminator behind them


def augmented(**more: Any) -> nn.Module:
    inner = {"which_model": "stylegan2_rosinality_disc", "size": 16, "max_channels": 8}
    return create_network({"which_model": "augmented_discriminator", "discriminator": inner, **more})


def test_r1_and_the_generator_see_through_the_augmentations() -> None:
    network, x = augmented(probability=1.0), pictures()
    loss = create_loss({"type": "r1", "real": "real", "discriminator": "d"})
    loss({"real": x}, Context({"d": network}, trained=("d",))).backward()
    gradients = [weight.grad for weight in network.parameters()]
    assert sum(gradient.abs().sum() > 0 for gradient in gradients if gradient is not None) > 10
    fake = x.clone().requires_grad_()
    network(fake).sum().backward()
    assert (fake.grad.flatten(1).abs().sum(1) > 0).all()


def test_nothing_is_augmented_in_evaluation() -> None:
    network, x = augmented(probability=1.0), pictures()
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network.discriminator(x))


def test_pictures_in_0_to_1_are_augmented_as_those_in_n1_to_1() -> None:
    x, found = pictures(), []
    for unit_range, given in ((False, x), (True, (x + 1) / 2)):
        torch.manual_seed(2)
        network = augmented(probability=1.0, unit_range=unit_range)
        torch.manual_seed(5)
        found.append(network.augmented(given))
    torch.testing.assert_close(found[1] * 2 - 1, found[0])


@pytest.mark.parametrize(("logit", "expected"), [(1.0, 0.54), (-1.0, 0.46)])
def test_the_chance_follows_the_signs_of_real_logits(logit: float, expected: float) -> None:
    network = augmented(probability=0.5, images=400, window=8)
    assert network.observe_real(torch.full((5, 1), logit))["augment_p"] == 0.5
    for _ in range(3):
        network.observe_real(torch.full((5, 1), logit))  # 10 and 20 pictures: two windows
    assert network.p.item() == pytest.approx(0.5 + (0.05 if logit > 0 else -0.05), abs=1e-6)
    halved = augmented(probability=0.5, images=400, window=16)
    for _ in range(4):
        halved.observe_real(torch.full((4, 2), logit))
    assert halved.p.item() == pytest.approx(expected, abs=1e-6)


def test_the_chance_stays_within_0_and_1_and_without_a_target_where_it_is() -> None:
    low, high = augmented(images=1, window=1), augmented(probability=1.0, images=1, window=1)
    low.observe_real(torch.full((4, 1), -1.0))
    high.observe_real(torch.full((4, 1), float("inf")))
    high.observe_real(torch.full((4, 1), 1.0))
    assert (low.p, high.p) == (0, 1)
    fixed = augmented(probability=0.3, target=None, images=1, window=1)
    fixed.observe_real(torch.ones(4, 1))
    assert fixed.p.item() == pytest.approx(0.3)


@pytest.mark.parametrize("logistic", [True, False])
def test_losses_tell_it_what_is_real_whatever_their_sign(logistic: bool) -> None:
    network = augmented(images=100, window=1)
    with torch.no_grad():
        network.discriminator.final_linear[1].bias.fill_(50.0 if logistic else -50.0)  # all is real
    options = {"type": "stylegan2_divergence", "real": "real", "fake": "fake", "discriminator": "d", "gen_loss": False}
    state, context = {"real": pictures(), "fake": pictures()}, Context({"d": network}, trained=("d",))
    _, logged = create_loss(options | {"logistic": logistic})(state, context)
    assert logged["augment_p"] == 0
    assert network.p.item() == pytest.approx(0.04)
    _, logged = create_loss({"type": "discriminator_gan", "gan_type": "gan", "real": "real", "fake": "fake"})(state, context)
    assert logged["augment_p"].item() == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ["blit", "zoom"]}, "there is no 'zoom'; known: blit, geometry"),
        ({"target": 1.0}, "within -1 and 1"),
        ({"discriminator": {"which_model": "none"}}, "none"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        augmented(**options)


# --------------------------------------------------------------------------------------------------------------- the whole

GAN = """\
name: gan
precision: fp32
datasets:
  train: {mode: digits, enlarge: 2, channels: 3, rgb_n1_to_1: true, batch_size: 4, n_workers: 0}
networks:
  generator: {which_model: stylegan2_rosinality_gen, size: 16, style_dim: 8, n_mlp: 2, max_channels: 8}
  discriminator:
    which_model: augmented_discriminator
    discriminator: {which_model: stylegan2_rosinality_disc, size: 16, max_channels: 8}
    images: 40
    window: 4
steps:
  discriminator:
    training: discriminator
    optimizer: adam
    optimizer_params: {lr: 2e-3, betas: [0, 0.99]}
    injectors:
      z: {type: stylegan2_noise, in: hq, out: z, latent_dim: 8}
      fake: {type: generator, generator: generator, in: z, out: [fake, w], no_grad: true}
    losses:
      gan:
        {type: stylegan2_divergence, weight: 1, real: hq, fake: fake, discriminator: discriminator, gen_loss: false,
         logistic: true}
      r1: {type: r1, every: 2, weight: 2, real: hq}
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {lr: 2e-3, betas: [0, 0.99]}
    injectors:
      z: {type: stylegan2_noise, in: hq, out: z_g, latent_dim: 8}
      fake: {type: generator, generator: generator, in: z_g, out: [made, w_g]}
    losses:
      gan:
        {type: stylegan2_divergence, weight: 1, real: hq, fake: made, discriminator: discriminator, gen_loss: true,
         logistic: true}
      path: {type: path_length, every: 2, weight: 4, w_styles: w_g, gen: made}
train: {niter: 4, ema: {half_life: 100}}
eval: {output_state: made, metrics: []}
logger: {tensorboard: false}
"""


def test_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, chance of augmentation, mean path length, mixing of styles, averages."""
    last = assert_resumes(tmp_path, monkeypatch, GAN)
    saved = load_file(last / "discriminator.safetensors")
    assert saved["p"] + saved["signs"].abs() + saved["seen"] > 0


def test_a_half_life_is_in_samples_whatever_the_batch() -> None:
    for batch in (2, 8):
        network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(network.weight)
        average = Averages(EmaConfig(half_life=16.0), {"net": copy.copy(network)}, batch).main["net"]
        with torch.no_grad():
            average.network.weight.fill_(0.0)
        for step in range(1, 16 // batch + 1):
            average.update(step)
        assert average.state_dict()["weight"].item() == pytest.approx(0.5, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- the recipes

RECIPES = Path(__file__).parents[1] / "recipes/stylegan2"


def test_a_penalty_within_an_update_needs_no_other_rates_than_one_that_is_an_update_of_its_own() -> None:
    """The authors' way: k + 1 updates in k iterations, at rates raised by k / (k + 1). Way and memory are then the same."""
    lr, beta, k = 2e-3, 0.99, 4

    def run(updates: int, lr: float, beta: float) -> tuple[float, float]:
        weight = nn.Parameter(torch.zeros(()))
        adam = torch.optim.Adam([weight], lr=lr, betas=(0.0, beta))
        for gradient in (1.0, 0.0):
            for _ in range(updates):
                weight.grad = torch.tensor(gradient)
                adam.step()
        moment = adam.state[weight]["exp_avg_sq"].item()
        return weight.item(), moment

    c = k / (k + 1)
    ours, theirs = run(100 * k, lr, beta), run(100 * (k + 1), c * lr, beta**c)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[0] == pytest.approx(-100 * k * lr, rel=1e-3)


@pytest.mark.parametrize("name", ["256", "small"])
def test_penalties_that_come_in_some_iterations_weigh_as_if_they_came_in_all(name: str) -> None:
    steps = load(RECIPES / f"{name}.yml").steps
    r1, path = steps["discriminator"].losses["r1"], steps["generator"].losses["path"]
    assert (r1.weight, r1.every) == (16, 16)
    assert (path.weight, path.every) == (2 * 4, 4)
    assert all(step.injectors["z"].options["mix_probability"] == 0.9 for step in steps.values())


def test_the_full_recipe_trains_validates_and_saves_shrunk(tmp_path: Path) -> None:
    for number, pixels in enumerate((pictures(3, 32) + 1) * 127.5):
        Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    small = {"size": 16, "max_channels": 8}
    networks = {"generator": small | {"style_dim": 8, "n_mlp": 2}, "discriminator.discriminator": small}
    settings = [f"networks.{name}.{key}={value}" for name, options in networks.items() for key, value in options.items()]
    settings += [f"datasets.{phase}.{key}" for phase in ("train", "val") for key in (f"paths={tmp_path}", "target_size=16")]
    settings += ["datasets.train.batch_size=2", "datasets.train.n_workers=0", "train.niter=2", "train.val_freq=2"]
    settings += [f"steps.{step}.injectors.z.latent_dim=8" for step in ("discriminator", "generator")]
    settings += ["eval.injectors.z.latent_dim=8", "eval.metrics=[fd_pca]", "eval.metric_options={fd_pca: {size: 8}}"]
    settings += ["eval.batch_size=1", "logger.tensorboard=false", f"path.experiments={tmp_path}"]
    assert Trainer(load(RECIPES / "256.yml", settings)).run().step == 2
    assert (tmp_path / "stylegan2_256/checkpoints/2/generator.ema.safetensors").exists()
    assert (tmp_path / "stylegan2_256/val/val/2.grid.png").exists()
