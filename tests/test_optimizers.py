"""Optimisers: parameter groups, names and options, and one-step hand formulas of those that are written here."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from dlas.errors import ConfigurationError, MissingPackageError
from dlas.optim import build_optimizer
from dlas.optim.layerwise import Lamb, Lars
from dlas.registry import OPTIMIZERS

# Options that each registered optimiser cannot do without.
MINIMAL: dict[str, dict[str, Any]] = {name: {"lr": 0.01} for name in ("adam", "adamw", "sgd", "lamb", "lars")}
MINIMAL |= {f"fused_{name}": {"lr": 0.01} for name in ("adam", "sgd", "adagrad", "lamb")}


class Net(nn.Module):
    """Convolution, normalisation, embedding, a head; one frozen parameter and one tied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 2)
        self.twin = nn.Linear(4, 2)
        self.twin.weight = self.head.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        features = self.body(image).mean((2, 3)) + self.embedding(torch.arange(len(image)))
        return self.scale * self.head(features) + self.twin(features)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"generator": Net(), "other": nn.Linear(2, 2)}


def names(optimizer: torch.optim.Optimizer, nets: dict[str, nn.Module]) -> dict[str, set[str]]:
    """Names of the parameters in each group."""
    by_id = {id(p): f"{net}.{name}" for net, network in nets.items() for name, p in network.named_parameters()}
    return {group["name"]: {by_id[id(p)] for p in group["params"]} for group in optimizer.param_groups}


def train(optimizer: torch.optim.Optimizer, nets: dict[str, nn.Module], steps: int) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    images, target = torch.randn(4, 3, 5, 5, generator=generator), torch.randn(4, 2, generator=generator)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (nets["other"](nets["generator"](images)) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- every registered optimiser ---------------------------------------------------------------------------------------------


def test_every_optimizer_is_in_the_table() -> None:
    assert set(MINIMAL) == set(OPTIMIZERS.entries()) - toys.NEED_APEX


@pytest.mark.parametrize("name", [*sorted(MINIMAL), "NAdam", "radam", "RMSprop", "Adafactor", "torch.optim.Adamax"])
def test_trains_and_resumes_exactly(name: str) -> None:
    nets = networks()
    optimizer = build_optimizer(name, nets, {"lr": 0.01})
    before = copy.deepcopy([p.detach() for p in nets["generator"].parameters()])
    losses = train(optimizer, nets, 20)
    assert all(torch.isfinite(torch.tensor(losses))) and losses[-1] < losses[0]
    after = dict(nets["generator"].named_parameters())
    changed = {name for (name, p), old in zip(after.items(), before, strict=True) if not torch.equal(p, old)}
    assert set(after) - changed == {"frozen"}

    resumed_nets = copy.deepcopy(nets)
    resumed = build_optimizer(name, resumed_nets, {"lr": 0.01})
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(resumed, resumed_nets, 5) == train(optimizer, nets, 5)


@pytest.mark.parametrize("name", sorted(MINIMAL))
def test_every_option_is_described(name: str) -> None:
    entry = OPTIMIZERS.find(name)
    lines = [line.strip() for line in entry.doc.splitlines()]
    assert all(any(line.startswith(f"{p.name}: ") for line in lines) for p in entry.parameters)


@pytest.mark.parametrize("name", sorted(MINIMAL))
def test_every_trainable_parameter_is_in_exactly_one_group(name: str) -> None:
    nets = networks()
    optimizer = build_optimizer(name, nets, MINIMAL[name])
    inside = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {id(p) for network in nets.values() for p in network.parameters() if p.requires_grad}
    assert len(inside) == len(set(inside)) and set(inside) == trainable
    assert all(group["initial_lr"] == group["lr"] == 0.01 for group in optimizer.param_groups)


# ---- parameter groups -------------------------------------------------------------------------------------------------------

NORM_BIAS = {
    "generator.body.1.weight",
    "generator.body.1.bias",
    "generator.body.2.weight",
    "generator.body.2.bias",
    "generator.embedding.weight",
    "generator.head.bias",
    "generator.twin.bias",
    "other.bias",
}
WEIGHTS = {"generator.body.0.weight", "generator.head.weight", "generator.scale", "other.weight"}


@pytest.mark.parametrize("name", ["adamw", "adam", "lamb", "lars", "fused_adam", "NAdam", "AdamW"])
def test_norms_and_biases_are_not_decayed(name: str) -> None:
    nets = networks()
    optimizer = build_optimizer(name, nets, {"lr": 0.01, "weight_decay": 0.1})
    assert names(optimizer, nets) == {"weights": WEIGHTS, "norm_bias": NORM_BIAS}
    assert {group["name"]: group["weight_decay"] for group in optimizer.param_groups} == {"weights": 0.1, "norm_bias": 0.0}

    optimizer = build_optimizer(name, nets, {"lr": 0.01, "weight_decay": 0.1, "exclude_norm_and_bias": False})
    assert names(optimizer, nets) == {"weights": WEIGHTS | NORM_BIAS}


def test_sgd_decays_everything_unless_told_otherwise() -> None:
    nets = networks()
    assert set(names(build_optimizer("sgd", nets, {"lr": 0.1, "weight_decay": 0.1}), nets)) == {"weights"}
    options = {"lr": 0.1, "weight_decay": 0.1, "exclude_norm_and_bias": True}
    assert set(names(build_optimizer("sgd", nets, options), nets)) == {"weights", "norm_bias"}


def test_an_optimizer_without_weight_decay_is_not_given_one() -> None:
    (group,) = build_optimizer("Rprop", networks(), {"lr": 0.1}).param_groups
    assert group["name"] == "weights" and "weight_decay" not in group


def test_groups_have_options_of_their_own() -> None:
    nets = networks()
    param_groups = {
        "head": {"match": r"generator\.(head|twin)", "lr": 0.5, "betas": [0.5, 0.6]},
        "rest": {"match": "^generator", "lr": 0.25},
    }
    optimizer = build_optimizer("adamw", nets, {"lr": 0.1, "weight_decay": 0.01, "param_groups": param_groups})
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "head": 0.5, "head.norm_bias": 0.5, "rest": 0.25, "rest.norm_bias": 0.25, "weights": 0.1, "norm_bias": 0.1,
    }  # fmt: skip
    assert all(group["initial_lr"] == group["lr"] for group in optimizer.param_groups)
    assert names(optimizer, nets)["head"] == {"generator.head.weight"}
    assert list(optimizer.param_groups[0]["betas"]) == [0.5, 0.6]
    train(optimizer, nets, 1)


def test_groups_by_attribute_of_the_parameter() -> None:
    nets = networks()
    nets["generator"].scale.PARAM_GROUP = "fast"
    optimizer = build_optimizer("sgd", nets, {"lr": 0.1, "param_groups": {"fast": {"lr": 1.0}}})
    assert names(optimizer, nets)["fast"] == {"generator.scale"}
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.1]


@pytest.mark.parametrize(
    ("param_groups", "message"),
    [
        ({"a": {"match": "nothing_like_it", "lr": 1}}, "group 'a' would be empty.* none matches 'nothing_like_it'"),
        ({"a": {"match": "", "lr": 1}, "b": {"match": "head"}}, "'b' would be empty: of the 0 .*(none)"),
        ({"a": {"match": r"generator\.frozen"}}, "'a' would be empty"),
        ({"a": {"lr": 1}}, "PARAM_GROUP = 'a'"),
        ({"a": {"match": "(", "lr": 1}}, "no regular expression"),
        ({"a": {"match": "head", "weight_deca": 1}}, "'a'.*did you mean 'weight_decay'"),
        ({"a": {"match": "head", "lr": "fast"}}, "lr must be a number of at least 0, given: 'fast'"),
        ({"a": 0.1}, "must be a mapping"),
    ],
)
def test_faulty_groups_are_refused(param_groups: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_optimizer("adamw", networks(), {"lr": 0.1, "param_groups": param_groups})


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="net have no trainable parameter"):
        build_optimizer("adamw", {"net": nn.Linear(2, 2).requires_grad_(False)}, {"lr": 0.1})


# ---- names and options ------------------------------------------------------------------------------------------------------


def test_upstream_keys_reach_torch() -> None:
    nets = networks()
    options = {"lr": 2e-4, "weight_decay": 1e-2, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6}
    for name in ("adam", "adamw", "fused_adam", "NAdam"):
        group = build_optimizer(name, nets, options).param_groups[0]
        assert (group["lr"], group["weight_decay"], group["eps"]) == (2e-4, 1e-2, 1e-6)
        assert tuple(group["betas"]) == (0.8, 0.95)
    assert tuple(build_optimizer("adamw", nets, {"lr": 1.0, "betas": [0.1, 0.2]}).param_groups[0]["betas"]) == (0.1, 0.2)
    assert tuple(build_optimizer("radam", nets, {"beta2": 0.5}).param_groups[0]["betas"]) == (0.9, 0.5)


def test_every_class_of_torch_is_known_in_any_case_of_letters() -> None:
    nets = networks()
    assert type(build_optimizer("nadam", nets, {"lr": 0.1})) is torch.optim.NAdam
    assert type(build_optimizer("AdamW", nets, {"amsgrad": True})) is torch.optim.AdamW
    assert type(build_optimizer("LAMB", nets, {"lr": 0.1})) is Lamb
    assert type(build_optimizer("FusedAdam", nets, {"lr": 0.1})) is torch.optim.AdamW
    assert type(build_optimizer("fused_adam", nets, {"lr": 0.1, "adam_w_mode": False})) is torch.optim.Adam
    assert type(build_optimizer("torch.optim.SGD", nets, {"lr": 0.1})) is torch.optim.SGD


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamv", {"lr": 0.1}, "no optimizer is called 'adamv'; did you mean 'adam'"),
        ("adamw", {"lr": 0.1, "weight_deca": 1}, "did you mean 'weight_decay'"),
        ("adamw", {}, "needs the option lr"),
        ("NAdam", {"momentum_deca": 1}, "optimizer 'NAdam' has no option 'momentum_deca'; did you mean 'momentum_decay'"),
        ("NAdam", {"lr": -1.0}, "Invalid learning rate"),
        ("adamw", {"lr": 0.1, "betas": [0.9]}, "betas must be"),
        ("RAdam", {"betas": [0.9, 0.99], "beta1": 0.5}, "give either 'betas' or"),
        ("LBFGS", {"lr": 0.1}, "evaluates the loss several times"),
        ("torch.optim.AdamWW", {"lr": 0.1}, "did you mean 'torch.optim.AdamW'"),
    ],
)
def test_faulty_names_and_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_optimizer(name, networks(), options)


def test_a_package_that_is_not_there_is_named_with_its_replacement() -> None:
    with pytest.raises(MissingPackageError, match="'no_such_package_x'") as caught:
        build_optimizer("no_such_package_x.optim.Shampoo", networks(), {"lr": 0.1})
    assert "or take 'adamw'" in str(caught.value)
    with pytest.raises(MissingPackageError, match=r"or take 'fused_adam'.*github\.com/NVIDIA/apex"):
        build_optimizer("apex.optimizers.FusedMixedPrecisionLamb", networks(), {"lr": 0.1})


def test_a_class_of_another_package_takes_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(torch.optim.SGD):
        def __init__(self, params: Any, lr: float, *, boldness: float = 1.0) -> None:
            super().__init__(params, lr * boldness)
            self.mode = "none"

        def train(self) -> None:
            self.mode = "train"

    module = ModuleType("some_optimizers")
    module.Mine = Mine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_optimizers", module)
    optimizer = build_optimizer("some_optimizers.Mine", networks(), {"lr": 0.5, "boldness": 2.0})
    assert isinstance(optimizer, Mine) and optimizer.param_groups[0]["initial_lr"] == 1.0 and optimizer.mode == "train"
    with pytest.raises(ConfigurationError, match="did you mean 'boldness'"):
        build_optimizer("some_optimizers.Mine", networks(), {"lr": 0.5, "bolness": 2.0})


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "AdamW"])
def test_fused_kernels_are_taken_where_there_are_any_and_may_be_refused(name: str) -> None:
    nets = networks()
    assert build_optimizer(name, nets, {"lr": 0.1}).param_groups[0]["fused"] is True  # torch has CPU kernels for these
    assert not build_optimizer(name, nets, {"lr": 0.1, "fused": False}).param_groups[0].get("fused")
    for without in ({"dtype": torch.complex64}, {"device": "meta"}):
        net = {"net": nn.Linear(2, 2, **without)}
        assert not build_optimizer(name, net, {"lr": 0.1}).param_groups[0].get("fused")
        with pytest.raises(ConfigurationError, match="fused: true is not possible here"):
            build_optimizer(name, net, {"lr": 0.1, "fused": True})


def test_fused_adam_says_that_apex_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        build_optimizer("fused_adam", networks(), {"lr": 0.1})
    assert "torch.optim.AdamW with its fused kernel takes its place" in caplog.text


def test_fused_and_plain_updates_agree() -> None:
    results = []
    for fused in (True, False):
        nets = networks()
        train(build_optimizer("adamw", nets, {"lr": 0.01, "weight_decay": 0.1, "fused": fused}), nets, 5)
        results.append(nets["generator"].state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], msg=name)


# ---- LAMB and LARS by hand --------------------------------------------------------------------------------------------------


def weight_and_gradient(scale: float = 1.0) -> tuple[nn.Parameter, Tensor]:
    generator = torch.Generator().manual_seed(3)
    parameter = nn.Parameter(scale * torch.randn(3, 4, generator=generator, dtype=torch.float64))
    gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    parameter.grad = gradient.clone()
    return parameter, gradient


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_lamb_first_step(scale: float) -> None:
    parameter, g = weight_and_gradient(scale)
    w = parameter.detach().clone()
    Lamb([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01).step()
    direction = 0.1 * g / ((0.01 * g * g).sqrt() + 1e-6) + 0.01 * w
    ratio = w.norm().clamp(max=10) / direction.norm()
    assert (w.norm() > 10) == (scale == 100.0)  # both sides of the clipped norm are seen
    torch.testing.assert_close(parameter.detach(), w - 0.1 * ratio * direction, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parameter.grad, g)


def test_lamb_moves_weights_that_are_zero_by_the_plain_step() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.ones(4)
    Lamb([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-6).step()
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.1 * 0.1 / (0.1 + 1e-6)))


def test_lamb_without_adaptation_is_adamw() -> None:
    ours, _ = weight_and_gradient()
    theirs, _ = weight_and_gradient()
    lamb = Lamb([{"params": [ours], "adapt": False}], lr=0.1, eps=1e-8, weight_decay=0.01)
    adamw = torch.optim.AdamW([theirs], lr=0.1, eps=1e-8, weight_decay=0.01, foreach=False)
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        ours.grad = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        theirs.grad = ours.grad.clone()
        lamb.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("lr", [10.0, 1e-4, 0.0])
def test_lars_two_steps(lr: float) -> None:
    parameter, g = weight_and_gradient()
    w = parameter.detach().clone()
    optimizer = Lars([parameter], lr=lr, momentum=0.9, weight_decay=0.1, lars_coefficient=0.001, eps=1e-8)
    buffer = torch.zeros_like(w)
    for _ in range(2):
        rate = 0.001 * w.norm() / (g.norm() + 0.1 * w.norm() + 1e-8)
        factor = 1.0 if lr == 0 else min(rate / lr, 1.0)
        buffer = 0.9 * buffer + (g + 0.1 * w) * factor
        w = w - lr * buffer
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), w, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(parameter.grad, g)


def test_lars_lets_zero_weights_move_and_treats_norms_and_biases_as_plain_sgd() -> None:
    zero = nn.Parameter(torch.zeros(2))
    zero.grad = torch.ones(2)
    Lars([zero], lr=0.5, momentum=0.0).step()
    assert zero.tolist() == [-0.5, -0.5]

    linear = nn.Linear(2, 2)
    start = linear.bias.detach().clone()
    optimizer = build_optimizer("lars", {"net": linear}, {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.3})
    for _ in range(2):
        linear.weight.grad, linear.bias.grad = torch.ones(2, 2), torch.ones(2)
        optimizer.step()
    torch.testing.assert_close(linear.bias.detach(), start - 1.0)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_own_optimizers_work_in_bfloat16_and_skip_missing_gradients(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    optimizer = build_optimizer(name, {"net": net}, {"lr": 0.1})
    before = copy.deepcopy(net.state_dict())
    net[0](torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].bias, before["0.bias"]) and torch.equal(net[1].weight, before["1.weight"])
    assert net[0].weight.dtype == torch.bfloat16 and net[0].weight.isfinite().all()
