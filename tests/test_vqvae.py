"""Vector-quantised autoencoders of two levels and of one, and the quantisers that they have."""

from __future__ import annotations

import copy

import pytest
import torch

from dlas.archs import create_network
from dlas.archs.dvae import DiscreteVAE
from dlas.archs.vqvae import VQVAE
from dlas.layers.vector_quantizer import ColumnVectorQuantizer, ExpiringVectorQuantizer, VectorQuantizer

SMALL = VQVAE.tiny()[0]


def test_columns_follow_as_rows_do() -> None:
    torch.manual_seed(0)
    rows, columns = VectorQuantizer(6, 3, commitment=0.5, decay=0.9), ColumnVectorQuantizer(6, 3, commitment=0.5, decay=0.9)
    columns.embed.copy_(rows.embedding.weight.t())
    columns.embed_avg.copy_(rows.embedding.sums.t())
    for shape in ((4, 3, 5, 7), (4, 3, 9), (4, 3)):
        z = torch.randn(shape)
        one, two = rows(z), columns(z)
        for expected, found in zip(one, two, strict=True):
            torch.testing.assert_close(found, expected)
        assert two.vectors.shape == shape
        assert two.indices.shape == (4, *shape[2:])
    torch.testing.assert_close(columns.embed, rows.embedding.weight.t())
    torch.testing.assert_close(columns.embed_avg, rows.embedding.sums.t())
    torch.testing.assert_close(columns.cluster_size, rows.embedding.counts)


@pytest.mark.parametrize(("name", "shape"), [("vqvae", (2, 3, 16, 24)), ("vqvae_audio", (2, 3, 40))])
def test_indices_stand_for_inputs(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network, x = create_network({"which_model": name, **SMALL}).eval(), torch.randn(shape)
    found, commitment, *figures = network(x)
    levels = network.encode(x)
    assert found.shape == x.shape
    assert levels.top.indices.shape[1:] == tuple(side // 8 for side in shape[2:])
    assert levels.bottom.indices.shape[1:] == tuple(side // 4 for side in shape[2:])
    torch.testing.assert_close(network.from_indices(levels.top.indices, levels.bottom.indices), found)
    assert commitment.shape == (1,)
    assert all(1 <= perplexity <= SMALL["codebook_size"] + 1e-3 for perplexity in figures[:2])
    assert [usage * SMALL["codebook_size"] for usage in figures[2:]] == [len(each.indices.unique()) for each in levels]


def test_both_levels_share_one_vocabulary() -> None:
    torch.manual_seed(0)
    network, x = create_network({"which_model": "vqvae_audio", **SMALL}).eval(), torch.randn(2, 3, 40)
    codes, levels = network.sequence(x), network.encode(x)
    assert torch.equal(codes[:, 5:], levels.bottom.indices)
    assert torch.equal(codes[:, :5], levels.top.indices + 6)
    torch.testing.assert_close(network.from_sequence(codes), network(x)[0])
    with pytest.raises(ValueError, match="a multiple of 3 in number"):
        network.from_sequence(codes[:, 1:])


def test_waveforms_have_no_channel_axis() -> None:
    network = create_network({"which_model": "vqvae_audio", **SMALL, "in_channel": -1})
    found, *_ = network(torch.randn(2, 48))
    assert found.shape == (2, 48)


def test_codebooks_move_in_training_alone() -> None:
    torch.manual_seed(0)
    network, x = create_network({"which_model": "vqvae", **SMALL}), torch.randn(2, 3, 16, 16)
    kept = copy.deepcopy(network.state_dict())
    network.eval()(x)
    with torch.no_grad():
        network.train()(x)
    assert all(torch.equal(kept[key], value) for key, value in network.state_dict().items())
    network(x)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(kept[key], value)}
    assert moved == {f"quantize_{level}.{name}" for level in "tb" for name in ("embed", "cluster_size", "embed_avg")}


def test_mistakes() -> None:
    with pytest.raises(Exception, match="in_channel must be positive, or -1"):
        create_network({"which_model": "vqvae", **SMALL, "in_channel": 0})
    with pytest.raises(ValueError, match="a side of 20 is no multiple of 8"):
        create_network({"which_model": "vqvae", **SMALL})(torch.randn(1, 3, 16, 20))


def test_directions_alone_decide_and_codes_keep_their_length() -> None:
    layer = ExpiringVectorQuantizer(2, 2, decay=0.5).eval()
    layer.codebook().copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    z = torch.tensor([[0.1, 0.01], [1.0, 9.0], [2.0, 2.1]])
    found = layer(z)
    assert found.indices.tolist() == [0, 1, 1]
    torch.testing.assert_close(found.vectors, layer.codebook()[found.indices])
    layer.train()(z[:1].requires_grad_())
    # half way to the mean direction; the code that was not used moves half way to its own
    of_used = torch.tensor([0.1, 0.01]) / torch.tensor([0.1, 0.01]).norm()
    expected = torch.stack(((torch.tensor([3.0, 0.0]) + of_used) / 2, torch.tensor([0.0, 0.75])))
    torch.testing.assert_close(layer.codebook(), expected)


@pytest.mark.parametrize("cosine", [True, False])
def test_codes_that_are_never_used_are_replaced(cosine: bool) -> None:
    torch.manual_seed(0)
    layer = ExpiringVectorQuantizer(3, 2, cosine=cosine, patience=4)
    layer.codebook().copy_(torch.tensor([[1.0, 1.0], [-50.0, -1.0], [-1.0, -50.0]]))
    if not cosine:
        layer.averages()[1].copy_(layer.codebook())
    z = 1 + 0.1 * torch.rand(16, 2)
    for misses in (1, 2, 3):
        assert layer(z).perplexity.item() == pytest.approx(1)
        assert layer.codebook_misses.tolist() == [0, misses, misses]
    layer(z)
    assert layer.codebook_misses.tolist() == [0, 0, 0]
    assert (layer.codebook()[1:] > 0.5).all()
    assert layer(z).perplexity > 1.5
    assert (layer.codebook() > 0.5).all()  # and they stay


@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 3, 8, 12)), (1, (2, 3, 20))])
def test_codes_of_one_level_stand_for_inputs(dims: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = create_network({"which_model": "dvae", **DiscreteVAE.tiny()[0], "positional_dims": dims}).eval()
    x = torch.randn(shape)
    errors, _, found, perplexity, usage = network(x)
    torch.testing.assert_close(errors, (found - x).square())
    codes = network.get_codebook_indices(x)
    assert codes.shape == (2, *(side // 4 for side in shape[2:]))
    torch.testing.assert_close(network.decode(codes)[0], found)
    shares = torch.bincount(codes.flatten()) / codes.numel()
    torch.testing.assert_close(perplexity, torch.special.entr(shares).sum().exp())
    assert usage * 6 == len(codes.unique())
    with pytest.raises(ValueError, match="a side of 10 is no multiple of 4"):
        network(torch.randn(2, 3, *[10] * dims))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"positional_dims": 3}, "positional_dims must be 1 or 2, got 3"), ({"kernel_size": 4}, "kernel_size must be odd, got 4")],
)
def test_mistakes_with_one_level(options: dict[str, int], message: str) -> None:
    with pytest.raises(Exception, match=message):
        create_network({"which_model": "dvae", **options})
