"""Two-level vector-quantised autoencoders, and the quantiser with codes in columns that they have."""

from __future__ import annotations

import copy

import pytest
import torch

from dlas.archs import create_network
from dlas.archs.vqvae import VQVAE
from dlas.layers.vector_quantizer import ColumnVectorQuantizer, VectorQuantizer

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
    found, commitment, *perplexity = network(x)
    levels = network.encode(x)
    assert found.shape == x.shape
    assert levels.top.indices.shape[1:] == tuple(side // 8 for side in shape[2:])
    assert levels.bottom.indices.shape[1:] == tuple(side // 4 for side in shape[2:])
    torch.testing.assert_close(network.from_indices(levels.top.indices, levels.bottom.indices), found)
    assert commitment.shape == (1,)
    assert all(1 <= value <= SMALL["codebook_size"] + 1e-3 for value in perplexity)


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
