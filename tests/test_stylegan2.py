"""The generator of StyleGAN2: styles of layers, truncation, noise, and the losses that it trains with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dlas.archs import create_network
from dlas.context import Context
from dlas.layers.stylegan2 import ModulatedConv2d
from dlas.losses import create_loss


def generator(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"which_model": "stylegan2_rosinality_gen", "size": 16, "style_dim": 8, "n_mlp": 2, "max_channels": 8}
    network = create_network(options | more)
    for module in network.modules():
        if type(module).__name__ == "NoiseInjection":
            nn.init.constant_(module.weight, 0.5)
    return network.eval()


def test_modulated_convolution_is_one_with_scaled_weights() -> None:
    """Equations 1 and 3 of the paper, a picture at a time, on the weights themselves."""
    torch.manual_seed(0)
    layer = ModulatedConv2d(3, 5, 3, 4)
    x, style = torch.randn(2, 3, 6, 7), torch.randn(2, 4)
    found = layer(x, style)
    for picture, factors, one in zip(x, layer.modulation(style), found, strict=True):
        weight = layer.scale * layer.weight[0] * factors[None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(one, nn.functional.conv2d(picture[None], weight, padding=1)[0])


def test_coarse_layers_have_the_first_style_and_fine_ones_the_second() -> None:
    network, z, z2 = generator(), torch.randn(2, 8), torch.randn(2, 8)
    one, two = network(z)[1], network(z2)[1]
    _, mixed = network([z, z2], inject_index=2)
    assert mixed.shape == (2, network.n_latent, 8)
    assert torch.equal(mixed[:, :2], one[:, :2])
    assert torch.equal(mixed[:, 2:], two[:, 2:])
    for seed in range(8):  # drawn: each has a layer at least
        torch.manual_seed(seed)
        drawn = network([z, z2])[1]
        assert torch.equal(drawn[:, 0], one[:, 0])
        assert torch.equal(drawn[:, -1], two[:, -1])


def test_pictures_follow_from_their_styles() -> None:
    network, z = generator(), torch.randn(2, 8)
    pictures, styles = network(z)
    assert torch.equal(network(styles, input_is_latent=True)[0], pictures)


def test_noise_is_kept_in_evaluation_and_drawn_in_training() -> None:
    network, z = generator(), torch.randn(2, 8)
    kept = network(z)[0]
    assert torch.equal(kept, network(z)[0])
    assert not torch.equal(kept, network(z, randomize_noise=True)[0])
    silent = [torch.zeros(1, 1, 1, 1)] * (network.n_latent - 1)
    assert not torch.equal(kept, network(z, noise=silent)[0])
    network.train()
    assert not torch.equal(network(z)[0], network(z)[0])
    assert torch.equal(network(z, randomize_noise=False)[0], kept)


def test_truncation_moves_styles_to_the_middle() -> None:
    network, z = generator(), torch.randn(2, 8)
    middle = network.mean_latent(64)
    styles = network(z)[1]
    torch.testing.assert_close(network(z, truncation=0.25, truncation_latent=middle)[1] - middle, (styles - middle) / 4)
    one, two = network(z, truncation=0.0, truncation_latent=middle)[0]
    torch.testing.assert_close(one, two)  # no variety is left


def test_path_length_takes_its_two_outputs() -> None:
    network = generator().train()
    pictures, styles = network([torch.randn(2, 8), torch.randn(2, 8)])
    loss = create_loss({"type": "path_length", "weight": 1, "w_styles": "styles", "gen": "gen"})
    penalty, logged = loss({"styles": styles, "gen": pictures}, Context({}, positions=(0, 1)))
    penalty.backward()
    assert logged["length"] > 0
    assert all(weight.grad.isfinite().all() for weight in network.style.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generator(size=24), "size must be a power of 2, 8 at least, got 24"),
        (lambda: generator()([torch.randn(2, 8)] * 3), "one or two latents, got 3"),
        (lambda: generator()(torch.randn(2, 8), truncation=0.5), "needs truncation_latent, for instance mean_latent"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        call()
