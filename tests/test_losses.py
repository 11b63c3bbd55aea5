"""Losses: closed forms, where gradients go, and independence of how the batch is cut."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.losses import Loss, create_loss
from dlas.losses.gan import Labels, discriminator_loss, discriminator_terms, generator_loss
from dlas.losses.penalties import input_gradient, interpolate_gradient_penalty, r1_penalty, unit_gradient_penalty

KINDS = ["gan", "vanilla", "pixgan", "ragan", "esrgan", "lsgan", "hinge", "wgan", "wgan_softplus"]
DISCRIMINATOR_KINDS = [*KINDS, "max_spread"]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Judge(nn.Module):
    """A small discriminator that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 1)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.layer.bias)
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image.detach())
        return F.softplus(self.layer(image.flatten(1)))


def _context(judge: nn.Module, positions: range = range(4), **settings) -> Context:
    return Context({"judge": judge}, trained=["judge"], positions=positions, **settings)


def _discriminator_gan(**options) -> Loss:
    return create_loss({"type": "discriminator_gan", "gan_type": "gan", "real": "hq", "fake": "gen"} | options)


def _generator_gan(**options) -> Loss:
    return create_loss(
        {"type": "generator_gan", "gan_type": "gan", "discriminator": "judge", "real": "hq", "fake": "gen"} | options
    )


def _images() -> dict[str, Tensor]:
    return {"hq": _random(4, 3, 4, 4), "gen": _random(4, 3, 4, 4, seed=1)}


# Creating


def test_keys_of_the_step_are_not_options() -> None:
    options = {"type": "pix", "criterion": "l1", "real": "hq", "fake": "gen"}
    loss = create_loss(options | {"weight": 0.05, "after": 10, "before": 20, "every": 2})
    assert loss({"hq": torch.zeros(2), "gen": torch.ones(2)}, Context({})) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "l1"}, "needs a type.*pix"),
        ({"type": "pixx"}, "did you mean 'pix'"),
        ({"type": "pix", "criterion": "l1", "real": "hq", "fake": "gen", "wieght": 1}, "no option 'wieght'"),
        ({"type": "pix", "criterion": "l1", "real": "hq"}, "needs the option fake"),
        ({"type": "pix", "criterion": "l3", "real": "hq", "fake": "gen"}, "no criterion is called 'l3'"),
        (
            {"type": "pix", "criterion": "l1", "real": "hq", "fake": "gen", "eps": 1e-3},
            "'eps' belongs to criterion: charbonnier",
        ),
        (
            {"type": "pix", "criterion": "l2", "real": "hq", "fake": "gen", "delta": 1.0},
            "'delta' belongs to criterion: huber or smooth_l1",
        ),
        ({"type": "generator_gan", "gan_type": "ragan", "discriminator": "d", "fake": "gen"}, "compares with real samples"),
    ],
)
def test_wrong_options_are_explained(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_loss(options)


# pix and direct


def _pix(criterion: str, difference: Tensor, **options) -> Tensor:
    loss = create_loss({"type": "pix", "criterion": criterion, "real": "hq", "fake": "gen"} | options)
    real = _random(*difference.shape)
    return loss({"hq": real, "gen": real + difference}, Context({}))


@pytest.mark.parametrize(
    ("criterion", "options", "expected"),
    [
        ("l1", {}, (0.5 + 2 + 0 + 3) / 4),
        ("l2", {}, (0.25 + 4 + 0 + 9) / 4),
        ("charbonnier", {"eps": 1.0}, (math.sqrt(1.25) + math.sqrt(5) + 1 + math.sqrt(10)) / 4),
        ("charbonnier", {}, (0.5 + 2 + 1e-3 + 3) / 4),
        ("smooth_l1", {}, (0.125 + 1.5 + 0 + 2.5) / 4),
        ("smooth_l1", {"delta": 2.0}, (0.0625 + 1 + 0 + 2) / 4),
        ("huber", {}, (0.125 + 1.5 + 0 + 2.5) / 4),
        ("huber", {"delta": 2.0}, (0.125 + 2 + 0 + 4) / 4),
    ],
)
def test_pix_closed_forms(criterion: str, options: dict, expected: float) -> None:
    found = _pix(criterion, torch.tensor([0.5, -2.0, 0.0, 3.0]), **options)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_charbonnier_at_zero_has_the_square_root_of_eps_and_no_gradient() -> None:
    loss = create_loss({"type": "pix", "criterion": "charbonnier", "real": "hq", "fake": "gen"})
    fake = torch.zeros(3, requires_grad=True)
    value = loss({"hq": torch.zeros(3), "gen": fake}, Context({}))
    value.backward()
    assert value.item() == pytest.approx(1e-3)
    assert torch.equal(fake.grad, torch.zeros(3))


def test_pix_scales_and_shifts_the_real_image() -> None:
    loss = create_loss({"type": "pix", "criterion": "l1", "real": "hq", "fake": "gen", "real_scale": 2, "real_offset": -1})
    assert loss({"hq": torch.tensor([0.75]), "gen": torch.tensor([0.0])}, Context({})) == 0.5


@pytest.mark.parametrize("criterion", ["l1", "l2", "charbonnier", "huber", "smooth_l1"])
def test_pix_is_computed_in_float32(criterion: str) -> None:
    loss = create_loss({"type": "pix", "criterion": criterion, "real": "hq", "fake": "gen"})
    fake = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    value = loss({"hq": torch.full((1000,), 0.3), "gen": fake}, Context({}))
    assert value.dtype == torch.float32
    assert value == loss({"hq": torch.full((1000,), 0.3), "gen": fake.float()}, Context({}))


def test_pix_does_not_broadcast() -> None:
    loss = create_loss({"type": "pix", "criterion": "l2", "real": "hq", "fake": "gen"})
    with pytest.raises(ValueError, match=r"real 'hq' \(2, 3, 8, 8\) and fake 'gen' \(2, 1, 8, 8\)"):
        loss({"hq": torch.zeros(2, 3, 8, 8), "gen": torch.zeros(2, 1, 8, 8)}, Context({}))


@pytest.mark.parametrize(
    ("options", "step", "expected"),
    [
        ({}, 0, 2.0),
        ({"inverted": True}, 0, -2.0),
        ({"annealing_termination_step": 100}, 0, 0.0),
        ({"annealing_termination_step": 100, "inverted": True}, 30, -0.6),
        ({"annealing_termination_step": 100}, 100, 2.0),
        ({"annealing_termination_step": 100}, 1000, 2.0),
    ],
)
def test_direct(options: dict, step: int, expected: float) -> None:
    loss = create_loss({"type": "direct", "key": "vb"} | options)
    assert loss({"vb": torch.tensor([[1.0, 3.0]])}, Context({}, step=step)).item() == pytest.approx(expected)


def test_direct_needs_a_tensor() -> None:
    with pytest.raises(ValueError, match="'vb' must be a tensor, not a float"):
        create_loss({"type": "direct", "key": "vb"})({"vb": 1.0}, Context({}))


# Adversarial objectives


def test_closed_forms_of_the_objectives() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx((0 + 0.5) / 2 + (0 + 1.25) / 2)
    assert generator_loss("hinge", fake).item() == pytest.approx(2.75 / 2)
    assert discriminator_loss("lsgan", real, fake).item() == pytest.approx((1 + 0.25) / 2 + (9 + 0.0625) / 2)
    assert generator_loss("lsgan", fake).item() == pytest.approx((16 + 0.5625) / 2)
    assert discriminator_loss("wgan", real, fake).item() == pytest.approx(-1.25 - 1.375)
    assert generator_loss("wgan", fake).item() == pytest.approx(1.375)
    assert discriminator_loss("max_spread", real, fake).item() == pytest.approx(2 * math.tanh(1 / (2 * 2.625)))


@pytest.mark.parametrize("kind", ["gan", "vanilla", "pixgan", "wgan_softplus"])
def test_names_of_the_cross_entropy(kind: str) -> None:
    real, fake = _random(2, 1, 5, 5), _random(2, 1, 5, 5, seed=1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    expected = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(discriminator_loss(kind, real, fake), expected)
    torch.testing.assert_close(generator_loss(kind, fake), F.binary_cross_entropy_with_logits(fake, ones))


def test_an_undecided_discriminator_costs_two_bits() -> None:
    logits = torch.zeros(5, 1)
    for kind in ("gan", "ragan"):
        assert discriminator_loss(kind, logits, logits).item() == pytest.approx(2 * math.log(2))
    assert generator_loss("gan", logits).item() == pytest.approx(math.log(2))
    assert generator_loss("ragan", logits, logits).item() == pytest.approx(math.log(2))


def test_relativistic_objectives_see_only_differences() -> None:
    real, fake = _random(6, 1).double(), _random(6, 1, seed=1).double()
    for kind in ("ragan", "esrgan"):
        shifted = discriminator_loss(kind, real + 5, fake + 5)
        torch.testing.assert_close(shifted, discriminator_loss(kind, real, fake), rtol=1e-12, atol=0)
        # The generator wants what the discriminator does not: its loss is that of the discriminator with the roles changed.
        swapped = discriminator_loss("ragan", fake, real) / 2
        torch.testing.assert_close(generator_loss(kind, fake, real), swapped, rtol=1e-12, atol=0)


def test_esrgan_is_half_of_ragan_with_constant_means() -> None:
    real, fake = _random(6, 1).double().requires_grad_(), _random(6, 1, seed=1).double().requires_grad_()
    found = discriminator_loss("esrgan", real, fake)
    torch.testing.assert_close(found, discriminator_loss("ragan", real, fake) / 2)
    found.backward()
    torch.testing.assert_close(real.grad, (torch.sigmoid(real - fake.mean()) - 1) / 12)
    torch.testing.assert_close(fake.grad, torch.sigmoid(fake - real.mean()) / 12)


@pytest.mark.parametrize("kind", DISCRIMINATOR_KINDS)
def test_discriminator_prefers_real_above_fake(kind: str) -> None:
    high, low = torch.full((4, 1), 0.4), torch.full((4, 1), -0.4)
    if kind == "max_spread":  # knows distance, not direction
        assert discriminator_loss(kind, high * 2, low) < discriminator_loss(kind, high, low)
    else:
        assert discriminator_loss(kind, high, low) < discriminator_loss(kind, low, high)


@pytest.mark.parametrize("kind", DISCRIMINATOR_KINDS)
def test_discriminator_terms_add_up_and_stay_finite_at_extremes(kind: str) -> None:
    for value in (0.0, 200.0):
        real = torch.full((3, 1), value, requires_grad=True)
        fake = torch.full((3, 1), value, requires_grad=True)
        loss = discriminator_loss(kind, real, fake)
        torch.testing.assert_close(loss, sum(discriminator_terms(kind, real, fake)))
        loss.backward()
        assert all(tensor.isfinite().all() for tensor in (loss, real.grad, fake.grad))


def test_unknown_and_one_sided_kinds_are_explained() -> None:
    logits = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="'lsgna'"):
        generator_loss("lsgna", logits)
    with pytest.raises(ValueError, match="'lsgna'"):
        discriminator_loss("lsgna", logits, logits)
    with pytest.raises(ValueError, match="discriminators only"):
        generator_loss("max_spread", logits)
    with pytest.raises(ValueError, match="give their logits"):
        generator_loss("ragan", logits)


# Adversarial losses over the state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_generator_learns_through_the_discriminator(kind: str, noise: float) -> None:
    judge = Judge().requires_grad_(False)
    state = _images()
    state["gen"].requires_grad_()
    loss, metrics = _generator_gan(gan_type=kind, noise=noise)(state, _context(judge))
    loss.backward()
    assert loss.shape == ()
    assert (state["gen"].grad.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics.keys() == ({"d_fake", "d_real"} if kind in ("ragan", "esrgan") else {"d_fake"})


def test_gradient_to_real_only_when_asked_for() -> None:
    for detach in (True, False):
        state = _images()
        for tensor in state.values():
            tensor.requires_grad_()
        _generator_gan(gan_type="ragan", detach_real=detach)(state, _context(Judge()))[0].backward()
        assert (state["hq"].grad is None) == detach
        assert state["gen"].grad is not None


@pytest.mark.parametrize("kind", DISCRIMINATOR_KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"noise": 0.1}, {"gradient_penalty": True}, {"r1_gamma": 10.0}, {"interpolate_penalty": 10.0}]
)
def test_only_the_discriminator_learns_from_its_loss(kind: str, options: dict) -> None:
    judge = Judge()
    state = _images()
    for tensor in state.values():
        tensor.requires_grad_()
    loss, metrics = _discriminator_gan(gan_type=kind, **options)(state, _context(judge))
    loss.backward()
    assert state["gen"].grad is None
    assert state["hq"].grad is None
    assert judge.layer.weight.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in metrics.values())
    assert metrics["d_real"].item() == pytest.approx(F.softplus(judge.layer(judge.seen[0].flatten(1))).mean().item(), rel=1e-6)


def test_real_and_fake_are_judged_apart_and_once() -> None:
    state = _images()
    for options in ({}, {"gradient_penalty": True, "r1_gamma": 1.0}):
        judge = Judge()
        _discriminator_gan(**options)(state, _context(judge))
        assert len(judge.seen) == 2
        assert torch.equal(judge.seen[0], state["hq"])
        assert torch.equal(judge.seen[1], state["gen"])


@pytest.mark.parametrize("make", [_generator_gan, _discriminator_gan])
def test_noise_does_not_depend_on_how_the_batch_is_cut(make) -> None:
    state = _images()
    loss = make(noise=0.5, gan_type="lsgan")
    whole_judge, halves_judge = Judge(), Judge()
    whole, _ = loss(state, _context(whole_judge, range(10, 14), seed=7))
    halves = [
        loss({key: value[part] for key, value in state.items()}, _context(halves_judge, positions, seed=7))[0]
        for part, positions in ((slice(0, 2), range(10, 12)), (slice(2, 4), range(12, 14)))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)
    passes = len(whole_judge.seen)
    for index, seen in enumerate(whole_judge.seen):
        assert torch.equal(seen, torch.cat([halves_judge.seen[index], halves_judge.seen[passes + index]]))


def test_noise_is_uniform_up_to_its_amplitude_and_differs_between_inputs_and_sides() -> None:
    zeros = torch.zeros(4, 3, 4, 4)
    state = {"hq": zeros, "gen": zeros}
    judge = Judge()
    _discriminator_gan(noise=0.25)(state, _context(judge, seed=3))
    _generator_gan(noise=0.25)(state, _context(judge, seed=3))
    for seen in judge.seen:
        assert seen.min() >= 0
        assert 0.2 < seen.max() < 0.25
        assert seen.mean().item() == pytest.approx(0.125, abs=0.02)
    first, second, third = judge.seen
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert len({sample.sum().item() for sample in first}) == 4


def test_noise_needs_the_batch_first() -> None:
    with pytest.raises(ValueError, match="the batch has 3 samples"):
        _discriminator_gan(noise=0.1)(_images(), _context(Judge(), range(3)))


def test_a_discriminator_may_take_several_arguments() -> None:
    class Conditional(nn.Module):
        def forward(self, image: Tensor, label: Tensor, nothing: None, factor: float) -> Tensor:
            assert nothing is None
            assert label.dtype == torch.int64
            return factor * image.flatten(1).sum(1) * label

    state = _images() | {"label": torch.tensor([1, 2, 0, 1])}
    arguments = {"real": ["hq", "label", "None", 0.5], "fake": ["gen", "label", "None", 0.5]}
    context = Context({"judge": Conditional()}, trained=["judge"], positions=range(4))
    real, fake = (0.5 * state[key].flatten(1).sum(1) * state["label"] for key in ("hq", "gen"))
    loss, _ = _discriminator_gan(gan_type="lsgan", **arguments)(state, context)
    torch.testing.assert_close(loss, discriminator_loss("lsgan", real, fake))
    loss, _ = _generator_gan(gan_type="ragan", **arguments)(state, context)
    torch.testing.assert_close(loss, generator_loss("ragan", fake, real))
    # The gradient of a sample is label / 2 in each of its 48 values.
    _, metrics = _discriminator_gan(noise=0.1, r1_gamma=2.0, **arguments)(state, context)
    assert metrics["r1"].item() == pytest.approx(48 * 0.25 * (1 + 4 + 0 + 1) / 4)


def test_which_network_is_the_discriminator() -> None:
    state, judge = _images(), Judge()
    named = _discriminator_gan(discriminator="judge")
    evaluation = Context({"judge": judge}, training=False)
    found, _ = _discriminator_gan()(state, _context(judge))
    assert named(state, evaluation)[0] == found
    with pytest.raises(ConfigurationError, match="The step trains no network; name it as 'discriminator'"):
        _discriminator_gan()(state, evaluation)
    with pytest.raises(ConfigurationError, match="The step trains judge, other"):
        _discriminator_gan()(state, Context({"judge": judge}, trained=["judge", "other"]))


class Scales(nn.Module):
    """Judges at two scales; the second's logits come with features before them."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = Judge(), Judge()
        nn.init.constant_(self.fine.layer.weight, 0.1)

    def forward(self, image: Tensor) -> list:
        return [self.coarse(image), [image, self.fine(image)]]


@pytest.mark.parametrize("kind", ["gan", "esrgan", "lsgan", "hinge", "wgan"])
def test_several_scales_are_averaged(kind: str) -> None:
    scales, state = Scales(), _images()
    for make in (_generator_gan, _discriminator_gan):
        options = {"gan_type": kind} | ({"r1_gamma": 0.0} if make is _discriminator_gan else {})
        found, logged = make(**options)(state, _context(scales))
        apart = [make(**options)(state, _context(judge)) for judge in (scales.coarse, scales.fine)]
        torch.testing.assert_close(found, (apart[0][0] + apart[1][0]) / 2)
        for key, value in logged.items():
            torch.testing.assert_close(value, (apart[0][1][key] + apart[1][1][key]) / 2)


def test_penalties_are_of_all_scales_together() -> None:
    scales, state = Scales(), _images()
    _, logged = _discriminator_gan(r1_gamma=2.0, gradient_penalty=True, interpolate_penalty=10.0)(state, _context(scales))
    images = state["hq"].clone().requires_grad_()
    both = scales.coarse(images) + scales.fine(images)
    torch.testing.assert_close(logged["r1"], r1_penalty(both, images).detach())
    assert logged.keys() >= {"gradient_penalty", "interpolate_penalty"}


def test_what_a_discriminator_may_return() -> None:
    class Odd(nn.Module):
        def forward(self, image: Tensor) -> dict:
            return {"logits": image}

    with pytest.raises(ValueError, match="one tensor of logits, or a list of one for each scale, not a dict"):
        _discriminator_gan()(_images(), _context(Odd()))


# Labels


@pytest.mark.parametrize("kind", ["gan", "ragan", "esrgan"])
def test_smooth_labels_are_those_of_the_cross_entropy(kind: str) -> None:
    real, fake = _random(8), _random(8, seed=1)
    labels = Labels(0.9, 0.1)
    shifted = (real, fake) if kind == "gan" else (real - fake.mean(), fake - real.mean())
    factor = 0.5 if kind == "esrgan" else 1.0
    expected = [
        factor * F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
        for logits, label in zip(shifted, (0.9, 0.1), strict=True)
    ]
    torch.testing.assert_close(list(discriminator_terms(kind, real, fake, labels)), expected)
    if kind == "gan":
        expected_of_generator = F.binary_cross_entropy_with_logits(fake, torch.full_like(fake, 0.9))
        torch.testing.assert_close(generator_loss(kind, fake, labels=labels), expected_of_generator)


def test_smooth_labels_of_least_squares() -> None:
    real, fake = torch.tensor([1.0, 0.5]), torch.tensor([0.5, -0.5])
    assert discriminator_loss("lsgan", real, fake, Labels(0.5, 0.25)).item() == pytest.approx(0.125 + (0.0625 + 0.5625) / 2)
    found, _ = _generator_gan(gan_type="lsgan", real_label=0.5)({"hq": real, "gen": fake}, _context(nn.Identity(), range(2)))
    assert found.item() == pytest.approx(0.5)


def test_labels_of_samples_are_noisy_and_flipped_however_the_batch_is_cut() -> None:
    state = {"hq": _random(64, 1), "gen": _random(64, 1, seed=1)}
    loss = _discriminator_gan(label_noise=0.2, label_flip=0.25)
    found, _ = loss(state, _context(nn.Identity(), range(64)))
    halves = [loss({k: v[i : i + 32] for k, v in state.items()}, _context(nn.Identity(), range(i, i + 32)))[0] for i in (0, 32)]
    torch.testing.assert_close(found, sum(halves) / 2)
    labels = loss._labels(state["hq"], _context(nn.Identity(), range(64)), "s")
    flipped = labels.real < 0.5
    assert 6 <= flipped.sum() <= 26
    assert (labels.real[~flipped] - 1).abs().max() <= 0.2
    assert labels.real.unique().numel() == 64
    assert not labels.real.equal(1 - labels.fake)


@pytest.mark.parametrize("options", [{"real_label": 0.9}, {"fake_label": 0.1}, {"label_noise": 0.1}, {"label_flip": 0.1}])
def test_kinds_without_labels_refuse_them(options: dict) -> None:
    with pytest.raises(ConfigurationError, match="gan_type hinge compares with no labels"):
        _discriminator_gan(gan_type="hinge", **options)


# Penalties as losses of their own


def test_penalties_alone_are_those_beside_the_adversarial_loss() -> None:
    judge, state = Judge(), _images()
    _, logged = _discriminator_gan(r1_gamma=10.0, gradient_penalty=True)(state, _context(judge))
    alone = {kind: create_loss({"type": kind, "real": "hq"})(state, _context(judge)) for kind in ("r1", "gradient_penalty")}
    torch.testing.assert_close(alone["r1"].detach(), logged["r1"])
    torch.testing.assert_close(10 * alone["gradient_penalty"].detach(), logged["gradient_penalty"])
    between = create_loss({"type": "gradient_penalty", "real": "hq", "fake": "gen"})(state, _context(judge))
    assert not torch.isclose(between, alone["gradient_penalty"])
    alone["r1"].backward()
    assert judge.layer.weight.grad.abs().max() > 0


def test_path_length_keeps_a_running_mean() -> None:
    mapping = nn.Linear(6, 12, bias=False)
    latents = _random(4, 6).requires_grad_()
    state = {"w": latents, "gen": mapping(latents).view(4, 3, 2, 2)}
    loss = create_loss({"type": "path_length", "w_styles": "w", "gen": "gen", "decay": 0.5})
    first, logged = loss(state, Context({}, positions=range(4)))
    torch.testing.assert_close(loss.running_mean, logged["length"] / 2)
    noise = Context({}, positions=range(4)).randn((3, 2, 2), "path_length") / 2
    lengths = (noise.flatten(1) @ mapping.weight).norm(dim=1)
    torch.testing.assert_close(logged["length"], lengths.mean())
    torch.testing.assert_close(first, (lengths - lengths.mean() / 2).square().mean())
    assert "running_mean" in loss.state_dict()
    with pytest.raises(ConfigurationError, match="no gradient reaches 'w'"):
        loss(state | {"w": latents.detach()}, Context({}, positions=range(4)))


# Penalties


def _linear_judge() -> tuple[nn.Module, float]:
    """Its gradient is its weight everywhere; the second value is the norm of that."""
    judge = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    nn.init.normal_(judge[1].weight, std=0.3, generator=torch.Generator().manual_seed(2))
    nn.init.zeros_(judge[1].bias)
    return judge, judge[1].weight.norm().item()


def test_penalties_of_a_linear_discriminator() -> None:
    judge, norm = _linear_judge()
    state = _images()
    plain, _ = _discriminator_gan()(state, _context(judge))
    options = {"gradient_penalty": True, "r1_gamma": 3.0, "interpolate_penalty": 5.0}
    loss, metrics = _discriminator_gan(**options)(state, _context(judge))
    assert metrics["gradient_penalty"].item() == pytest.approx(10 * (norm - 1) ** 2, rel=1e-5)
    assert metrics["r1"].item() == pytest.approx(1.5 * norm**2, rel=1e-5)
    assert metrics["interpolate_penalty"].item() == pytest.approx(5 * (norm - 1) ** 2, rel=1e-5)
    torch.testing.assert_close(
        loss.detach(), plain.detach() + sum(metrics[name] for name in metrics.keys() - {"d_real", "d_fake"})
    )
    # Pixel by pixel the norm is that of the three channels.
    by_pixel = judge[1].weight.reshape(1, 3, 4, 4).norm(dim=1)
    found = interpolate_gradient_penalty(judge, state["hq"], state["gen"], torch.full((4, 1, 1, 1), 0.3), norm="pixel")
    torch.testing.assert_close(found, (by_pixel - 1).square().mean())


def test_penalties_can_be_minimised() -> None:
    images = _random(4, 3, 4, 4).requires_grad_()
    for penalty in (r1_penalty, unit_gradient_penalty):
        judge, _ = _linear_judge()
        penalty(judge(images), images).backward()
        before = penalty(judge(images), images)
        with torch.no_grad():
            judge[1].weight -= 1e-3 * judge[1].weight.grad
        assert penalty(judge(images), images) < before


def test_input_gradient_of_a_quadratic() -> None:
    images = _random(2, 3, 4, 4).requires_grad_()
    torch.testing.assert_close(input_gradient(images.flatten(1).square().sum(1), images), 2 * images)


def test_the_point_between_real_and_fake_does_not_depend_on_how_the_batch_is_cut() -> None:
    state = _images()
    loss = _discriminator_gan(interpolate_penalty=1.0)
    whole, parts = Judge(), Judge()
    loss(state, _context(whole, range(4)))
    for index in range(4):
        loss({key: value[index : index + 1] for key, value in state.items()}, _context(parts, range(index, index + 1)))
    mixtures = whole.seen[2]
    torch.testing.assert_close(mixtures, torch.cat(parts.seen[2::3]), rtol=0, atol=0)
    alpha = (mixtures - state["gen"]) / (state["hq"] - state["gen"])
    assert ((alpha > 0) & (alpha < 1)).all()
    torch.testing.assert_close(alpha, alpha[:, :1, :1, :1].expand_as(alpha), rtol=1e-3, atol=1e-3)


def test_penalties_stay_in_float32_under_autocast_and_work_without_gradients() -> None:
    judge, norm = _linear_judge()
    loss = _discriminator_gan(gradient_penalty=True, interpolate_penalty=1.0)
    expected, exact = loss(_images(), _context(judge))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        value, metrics = loss({key: tensor.bfloat16() for key, tensor in _images().items()}, _context(judge))
    assert value.dtype == torch.float32
    assert metrics["gradient_penalty"].item() == pytest.approx(10 * (norm - 1) ** 2, rel=1e-5)
    assert metrics["interpolate_penalty"] == exact["interpolate_penalty"]
    torch.testing.assert_close(value, expected, rtol=2e-2, atol=0, check_dtype=False)


def test_interpolation_needs_equal_shapes() -> None:
    state = _images()
    state["gen"] = state["gen"][:, :, :2]
    judge = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"\(4, 3, 4, 4\) and \(4, 3, 2, 4\)"):
        _discriminator_gan(interpolate_penalty=1.0)(state, _context(judge))


def test_penalty_needs_an_image() -> None:
    state = {"hq": torch.zeros(4, dtype=torch.int64), "gen": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(ValueError, match="float tensor"):
        _discriminator_gan(gradient_penalty=True)(state, _context(nn.Embedding(2, 1)))
