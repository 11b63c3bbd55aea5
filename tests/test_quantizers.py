"""Quantisers of the option `quantizer`, against closed forms, against each other over processes, and within autoencoders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing

from dlas.archs import create_network
from dlas.context import Context
from dlas.errors import ConfigurationError, TrainingError
from dlas.injectors import create_injector
from dlas.layers.quantizers import create_quantizer
from dlas.layers.vector_quantizer import drawn
from dlas.ranks import gather_with_gradient
from dlas.registry import QUANTIZERS

CODES, CHANNELS = 16, 5
OPTIONS: dict[str, dict[str, Any]] = {
    "vq": {},
    "vq learned": {"decay": None},
    "vq cosine": {"use_cosine_sim": True, "codebook_dim": 3, "threshold_ema_dead_code": 0.5, "kmeans_init": True},
    "gumbel": {"annealing_steps": 10},
    "residual": {"stages": 3},
    "fsq": {"levels": [4, 2, 2]},
    "lfq": {"temperature": 1.0},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(name: str, codes: int = CODES, channels: int = CHANNELS, **more: Any) -> Any:
    return create_quantizer({"type": name.partition(" ")[0], **OPTIONS[name], **more}, codes, channels)


def test_each_registered_one_is_tested() -> None:
    assert {name.partition(" ")[0] for name in OPTIONS} == set(QUANTIZERS.entries())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", [(4, CHANNELS, 3, 2), (4, CHANNELS, 7), (9, CHANNELS)])
def test_codes_stand_for_what_is_decoded(name: str, shape: tuple[int, ...]) -> None:
    layer, z = build(name).eval(), torch.randn(shape)
    found = layer(z)
    assert found.vectors.shape == shape
    assert found.indices.dtype == torch.int64
    assert found.indices.min() >= 0
    assert found.indices.max() < CODES
    stages = (3,) if name == "residual" else ()
    assert found.indices.shape == (shape[0], *stages, *shape[2:])
    torch.testing.assert_close(layer.lookup(found.indices), found.vectors)
    if not stages:
        shares = torch.bincount(found.indices.flatten(), minlength=CODES) / found.indices.numel()
        torch.testing.assert_close(found.perplexity, torch.special.entr(shares).sum().exp())
        torch.testing.assert_close(found.usage, (shares > 0).float().mean())


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_reach_the_encoder_and_all_weights(name: str) -> None:
    layer, z = build(name), torch.randn(64, CHANNELS).requires_grad_()
    found = layer(z)
    (found.vectors.square().sum() + found.loss).backward()
    assert z.grad is not None
    assert (z.grad.abs().sum(1) > 0).all()
    for key, weight in layer.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.isfinite().all(), key


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_moves_in_evaluation(name: str) -> None:
    layer = build(name)
    kept = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.eval()(torch.randn(64, CHANNELS))
    with torch.no_grad():
        layer.train()(torch.randn(64, CHANNELS))
    assert all(torch.equal(value, kept[key]) for key, value in layer.state_dict().items())


# ------------------------------------------------------------------------------------------------------------------ codebooks


def test_distances_or_directions_decide() -> None:
    codes, z = torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.8]])
    for cosine, expected in ((False, 1), (True, 0)):
        layer = create_quantizer({"type": "vq", "use_cosine_sim": cosine}, 2, 2).eval()
        layer._codebook.embed.copy_(codes)
        found = layer(z)
        assert found.indices.item() == expected
        torch.testing.assert_close(found.vectors[0], F.normalize(codes[expected], dim=0) if cosine else codes[expected])


def test_a_code_follows_the_average_of_its_vectors() -> None:
    layer, z = create_quantizer({"type": "vq", "decay": 0.75}, 2, 1), torch.tensor([[2.0], [4.0], [11.0]])
    layer._codebook.embed.copy_(torch.tensor([[1.0], [10.0]]))
    layer._codebook.embed_avg.copy_(layer._codebook.embed)
    found = layer(z.requires_grad_())
    assert found.indices.tolist() == [0, 0, 1]
    torch.testing.assert_close(found.vectors, torch.tensor([[1.0], [1.0], [10.0]]))
    assert found.loss.item() == pytest.approx((1 + 9 + 1) / 3)
    # (0.75 * 1 + 0.25 * (2 + 4)) / (0.75 + 0.25 * 2), and (0.75 * 10 + 0.25 * 11) / 1
    torch.testing.assert_close(layer.codebook(), torch.tensor([[1.8], [10.25]]), rtol=1e-4, atol=0)


def test_learned_codes_are_pulled_and_vectors_committed() -> None:
    layer, z = create_quantizer({"type": "vq", "decay": None, "commitment_weight": 0.5}, 2, 1), torch.tensor([[3.0]])
    with torch.no_grad():
        layer._codebook.embed.copy_(torch.tensor([[1.0], [10.0]]))
    layer(z.requires_grad_()).loss.backward()
    assert z.grad is not None
    assert z.grad.item() == pytest.approx(0.5 * 2 * (3 - 1))
    assert layer._codebook.embed.grad.tolist() == [[2 * (1 - 3)], [0]]


@pytest.mark.parametrize("cosine", [False, True])
def test_codes_that_die_are_replaced_by_vectors(cosine: bool) -> None:
    layer = create_quantizer({"type": "vq", "use_cosine_sim": cosine, "threshold_ema_dead_code": 0.5, "decay": 0.5}, 3, 2)
    layer._codebook.embed.copy_(F.normalize(torch.tensor([[1.0, 1.0], [-5.0, -1.0], [-1.0, -5.0]]), dim=1))
    layer._codebook.embed_avg.copy_(layer._codebook.embed)
    z = 1 + 0.5 * torch.rand(32, 2)
    assert layer(z).usage.item() == pytest.approx(1 / 3)
    assert (layer.codebook()[1:] < 0).all()  # a count of 0.5 is not less than that
    layer(z)
    assert (layer.codebook() > 0).all()
    assert layer(z).usage.item() > 0.6


def test_clusters_of_the_first_batch_are_the_codes() -> None:
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    z = (centres + 0.1 * torch.randn(50, 4, 2)).flatten(0, 1)
    layer = create_quantizer({"type": "vq", "kmeans_init": True, "kmeans_iters": 20}, 4, 2)
    assert layer(z).loss < 0.05
    order = torch.cdist(centres, layer.codebook()).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(layer._codebook.cluster_size, torch.full((4,), 50.0))
    again = create_quantizer({"type": "vq", "kmeans_init": True}, 4, 2)
    again.load_state_dict(layer.state_dict())
    again(z + 100)  # a checkpoint's codes are fitted to nothing
    assert (again.codebook() < 20).all()


def test_draws_are_uniform_over_vectors() -> None:
    counts = torch.bincount(drawn(torch.arange(4.0)[:, None], 4000).long().flatten(), minlength=4)
    assert ((counts - 1000).abs() < 5 * math.sqrt(750)).all()


BOOKS: list[dict[str, Any]] = [{"threshold_ema_dead_code": 1.0, "decay": 0.5}, {"kmeans_init": True, "use_cosine_sim": True}]


def train_in_process(rank: int, rendezvous: str, z: Tensor, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(7)
    layers = [create_quantizer({"type": "vq", **options}, 4, 2) for options in BOOKS]
    torch.manual_seed(100 + rank)  # processes draw different numbers
    own = z[:5] if rank == 0 else z[5:]
    rows = drawn(own, 4000)
    for layer in 3 * layers:
        layer(own)
    _check_gathering(rank, own.clone().requires_grad_(), z)
    torch.save({"states": [layer.state_dict() for layer in layers], "rows": rows}, f"{folder}/{rank}.pth")
    distributed.destroy_process_group()


def _check_gathering(rank: int, own: Tensor, z: Tensor) -> None:
    rows = gather_with_gradient(own)  # 5 of one process, 15 of the other
    torch.testing.assert_close(rows, z)
    ((rank + 1) * rows * z).sum().backward()
    torch.testing.assert_close(own.grad, 3 * own.detach())  # of both processes


def test_processes_have_one_codebook_of_all_their_vectors(tmp_path: Path) -> None:
    z = torch.randn(20, 2)
    multiprocessing.spawn(train_in_process, (str(tmp_path / "rendezvous"), z, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # 5 of the vectors are on one process and 15 on the other, and each is as likely as any other
    counts = (first["rows"][:, None] == z).all(-1).sum(0)
    assert counts.sum() == 4000
    assert ((counts - 200).abs() < 5 * math.sqrt(200)).all()


# --------------------------------------------------------------------------------------------------------------- without them


def test_a_draw_has_the_probabilities_of_the_logits() -> None:
    layer = create_quantizer({"type": "gumbel"}, 3, 2)
    with torch.no_grad():
        layer.to_logits.weight.zero_()
        layer.to_logits.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    found = layer(torch.zeros(6000, 2))
    shares = torch.bincount(found.indices) / 6000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.03)
    torch.testing.assert_close(found.vectors, layer.embed(found.indices))
    divergence = sum(p * math.log(3 * p) for p in (0.5, 0.3, 0.2))
    assert found.loss.item() == pytest.approx(5e-4 * divergence, rel=1e-4)
    assert (layer.eval()(torch.zeros(9, 2)).indices == 0).all()


def test_temperature_falls_to_its_end() -> None:
    layer, z = create_quantizer({"type": "gumbel", "final_temperature": 0.25, "annealing_steps": 2}, 3, 2), torch.zeros(1, 2)
    found = []
    for _ in range(4):
        found.append(layer.temperature().item())
        layer(z)
    assert found == pytest.approx([1, 0.5, 0.25, 0.25])


def test_a_relaxed_draw_is_a_mixture() -> None:
    layer = create_quantizer({"type": "gumbel", "straight_through": False, "temperature": 10.0}, 3, 2)
    found = layer(torch.randn(20, 2))
    assert (torch.cdist(found.vectors, layer.embed.weight).min(1).values > 1e-3).all()


def test_each_stage_codes_what_is_left() -> None:
    layer, z = build("residual").eval(), torch.randn(40, CHANNELS)
    left = z
    for stage, indices in zip(layer.stages, layer(z).indices.unbind(1), strict=True):
        assert torch.equal(stage(left).indices, indices)
        left = left - stage.lookup(indices)
    torch.testing.assert_close(z - layer(z).vectors, left)


def test_levels_are_evenly_spaced_and_all_are_met() -> None:
    layer = create_quantizer({"type": "fsq", "levels": [5, 4]}, 20, 2)
    with torch.no_grad():
        for linear in (layer.project_in, layer.project_out):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    line = torch.linspace(-9, 9, 4001)
    found = layer(torch.stack((line, line), dim=1))
    assert found.vectors[:, 0].unique().tolist() == [-1, -0.5, 0, 0.5, 1]
    assert found.vectors[:, 1].unique().tolist() == [-1, -0.5, 0, 0.5]
    every = layer.lookup(torch.arange(20))
    assert len(every.unique(dim=0)) == 20
    zero = layer(torch.zeros(1, 2))
    assert zero.vectors.tolist() == [[0, 0]]
    assert found.loss == 0


def test_signs_are_bits() -> None:
    layer = create_quantizer({"type": "lfq", "entropy_weight": 0.0, "commitment_weight": 1.0}, 8, 3)
    with torch.no_grad():
        layer.project_in.weight.copy_(torch.eye(3))
        layer.project_in.bias.zero_()
    found = layer(torch.tensor([[0.5, -2.0, 1.0]]))
    assert found.indices.tolist() == [0b101]
    assert found.loss.item() == pytest.approx((0.25 + 1 + 0) / 3)


def test_clear_and_different_decisions_are_asked_for() -> None:
    layer = create_quantizer({"type": "lfq", "temperature": 1.0, "commitment_weight": 0.0, "entropy_weight": 1.0}, 4, 2)
    sure = 9 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert layer._entropies(sure).item() == pytest.approx(-math.log(4), abs=1e-4)
    assert layer._entropies(sure[:1]).item() == pytest.approx(0, abs=1e-4)
    assert layer._entropies(torch.zeros(3, 2)).item() == pytest.approx(0, abs=1e-4)
    # of two bits with odds of exp(4 x) each
    x = torch.tensor([[0.2, -0.1]])
    odds = (4 * x).sigmoid()
    expected = torch.special.entr(torch.stack((odds, 1 - odds))).sum()
    layer.diversity = 0.0
    torch.testing.assert_close(layer._entropies(x), expected)


# ------------------------------------------------------------------------------------------------------------- in autoencoders

SMALL: dict[str, tuple[dict[str, Any], str]] = {
    "vqvae": ({"channel": 8, "n_res_block": 1, "n_res_channel": 4, "codebook_dim": 4}, "codebook_size"),
    "dvae": ({"codebook_dim": 4, "num_layers": 2, "hidden_dim": 4}, "num_tokens"),
    "lucidrains_dvae": ({"codebook_dim": 4, "num_layers": 2, "hidden_dim": 8}, "num_tokens"),
    "autoencoder_vq": ({"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "norm_groups": "dlas"}, "n_embed"),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", OPTIONS)
def test_autoencoders_take_any_of_them(name: str, kind: str) -> None:
    options, codes = SMALL[name]
    quantizer = {"type": kind.partition(" ")[0], **OPTIONS[kind]}
    network = create_network({"which_model": name, **options, codes: CODES, "quantizer": quantizer})
    results = network(torch.randn(2, 3, 16, 16))
    torch.stack([each.mean() for each in results if each.requires_grad]).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "fsq", "levels": [4, 2]}, r"levels \[4, 2\] make 8 codes, but the network has 16"),
        ({"type": "fsq", "levels": [16, 1]}, "each of 'levels' must be 2 or more"),
        ({"type": "lfq", "comitment_weight": 1}, "did you mean 'commitment_weight'"),
        ({"type": "vqq"}, "did you mean"),
        ({"levels": [4, 4]}, "a quantizer needs a type, one of: fsq, gumbel, lfq"),
        ({"type": "vq", "decay": None, "threshold_ema_dead_code": 1.0}, "give a decay, or 0 here"),
        ({"type": "residual", "stage": {"type": "fsq"}}, "'stage' must be"),
        ({"type": "residual", "stage": {"codebook_dim": 2}}, "without codebook_dim"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_network({"which_model": "dvae", "num_tokens": 16, "quantizer": options})


def test_bits_are_a_power_of_two() -> None:
    with pytest.raises(ValueError, match=r"a power of 2 above 1; the network has 12"):
        create_quantizer({"type": "lfq"}, 12, 4)


def test_figures_are_logged() -> None:
    seen: dict[str, float] = {}
    context = Context(networks={}, log=lambda name, value, weight: seen.update({name: value.item()}))
    create_injector({"type": "log", "in": ["usage", "errors"]})(
        {"usage": torch.tensor(0.5), "errors": torch.tensor([1, 2])}, context
    )
    assert seen == {"usage": 0.5, "errors": 1.5}
    with pytest.raises(TrainingError, match="'usage' must be a tensor, not a float"):
        create_injector({"type": "log", "in": "usage"})({"usage": 0.5}, context)


# ------------------------------------------------------------------------------------------------------- TorToiSe's autoencoder


def tortoise(**options: Any) -> Any:
    sizes = {"num_tokens": 12, "codebook_dim": 4, "num_layers": 2, "num_resnet_blocks": 1, "hidden_dim": 8}
    return create_network({"which_model": "lucidrains_dvae", **sizes, **options})


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 3, 12, 12)), (1, (2, 3, 20))])
def test_codes_in_a_row_are_a_square(transposed: bool, dims: int, shape: tuple[int, ...]) -> None:
    network = tortoise(positional_dims=dims, use_transposed_convs=transposed, kernel_size=4 if transposed else 3).eval()
    x = torch.randn(shape)
    _, _, found, *_ = network(x)
    codes = network.get_codebook_indices(x)
    torch.testing.assert_close(network.decode(codes.flatten(1))[0], found)
    if dims == 2:
        with pytest.raises(ValueError, match="8 codes are no square picture"):
            network.decode(codes.flatten(1)[:, :8])


def test_inputs_are_normalised_and_errors_are_of_that() -> None:
    network = tortoise(normalization=[[1.0, 2.0, 3.0], [2.0, 2.0, 4.0]]).eval()
    plain = tortoise().eval()
    plain.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 8, 8)
    normal = (x - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / torch.tensor([2.0, 2.0, 4.0]).view(3, 1, 1)
    for one, two in zip(network(x), plain(normal), strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(network.get_codebook_indices(x), plain.get_codebook_indices(normal))


def test_errors_may_be_smooth_l1() -> None:
    network, x = tortoise(smooth_l1_loss=True).eval(), 3 * torch.randn(2, 3, 8, 8)
    errors, _, found, *_ = network(x)
    far = (found - x).abs()
    torch.testing.assert_close(errors, torch.where(far < 1, far.square() / 2, far - 0.5))


def test_channels_are_normalised_behind_each_strided_convolution() -> None:
    network = tortoise(encoder_norm=True)
    kinds = [type(layer).__name__ for layer in network.encoder]
    assert kinds == ["Sequential", "GroupNorm", "Sequential", "GroupNorm", "ResidualBlock", "Conv2d"]


def test_without_strided_convolutions_codes_are_as_many_as_pixels() -> None:
    network = tortoise(num_layers=0)
    assert network.get_codebook_indices(torch.randn(1, 3, 5, 5)).shape == (1, 5, 5)


def test_the_other_quantiser_has_its_arguments() -> None:
    layer = tortoise(use_lr_quantizer=True, lr_quantizer_args={"commitment_weight": 0.5, "codebook_dim": 2}).codebook
    assert (layer.decay, layer.commitment, layer.codebook().shape) == (0.8, 0.5, (12, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 3}, "do not enlarge by exactly the stride 2; give 4"),
        ({"use_transposed_convs": False}, "kernel_size must be odd, got 4"),
        ({"num_layers": 0, "num_resnet_blocks": 0}, "num_layers 0 needs num_resnet_blocks of 1 or more"),
        ({"normalization": [[0.5], [0.5]]}, "for 3 channels got"),
        ({"lr_quantizer_args": {"decay": 0.9}}, "no effect without 'use_lr_quantizer: true'"),
        ({"use_lr_quantizer": True, "quantizer": {"type": "gumbel"}}, "give one of them"),
    ],
)
def test_mistakes_with_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tortoise(**options)
