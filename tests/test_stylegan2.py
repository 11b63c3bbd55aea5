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


def test_lucidrains_networks_have_the_layers_of_their_checkpoints() -> None:
    with torch.device("meta"):
        made = create_network({"which_model": "stylegan2_lucidrains", "image_size": 128, "latent_dim": 512, "style_depth": 8})
        judge = create_network({"which_model": "stylegan2_discriminator", "image_size": 128})
    shapes = {name: tuple(value.shape) for name, value in (made.state_dict() | judge.state_dict()).items()}
    assert shapes["vectorizer.net.14.weight"] == (512, 512)
    assert shapes["gen.initial_block"] == (1, 512, 4, 4)
    assert [shapes[f"gen.blocks.{level}.conv2.weight"][0] for level in range(6)] == [512, 512, 256, 128, 64, 32]
    assert shapes["gen.blocks.5.to_rgb.conv.weight"] == (3, 32, 1, 1)
    assert {"gen.blocks.4.to_rgb.upsample.1.f", "gen.blocks.0.to_noise1.bias"} <= shapes.keys()
    assert "gen.blocks.5.to_rgb.upsample.1.f" not in shapes
    assert [shapes[f"D.blocks.{level}.net.0.weight"][0] for level in range(7)] == [64, 128, 256, 512, 512, 512, 512]
    assert {"D.blocks.5.downsample.1.weight", "D.blocks.5.downsample.0.f"} <= shapes.keys()
    assert "D.blocks.6.downsample.1.weight" not in shapes
    assert shapes["D.to_logit.weight"] == (1, 2048)


def test_lucidrains_generator_mixes_two_styles_in_most_pictures() -> None:
    torch.manual_seed(0)
    options = {"which_model": "stylegan2_lucidrains", "image_size": 32, "latent_dim": 8, "style_depth": 1, "fmap_max": 8}
    network = create_network(options)
    pictures, styles = network(torch.rand(256, 1, 32, 32))
    assert pictures.shape == (256, 3, 32, 32)
    changes = (styles.diff(dim=1).abs().sum(2) > 0).sum(1)
    assert set(changes.tolist()) == {0, 1}
    # Of 4 layers the change is before one of them with equal chances: before the first there is nothing to see.
    assert changes.float().mean().item() == pytest.approx(0.9 * 3 / 4, abs=0.06)
    z = torch.randn(2, 8)
    assert torch.equal(network(torch.zeros(2, 1, 32, 32), z)[0], network(torch.zeros(2, 1, 32, 32), z)[0])


def test_its_discriminator_augments_in_training_alone() -> None:
    torch.manual_seed(0)
    options = {"which_model": "stylegan2_discriminator", "image_size": 16, "fmap_max": 8, "augmentation_probability": 1.0}
    judge, x = create_network(options | {"augmentation_types": ["cutout"]}), torch.rand(4, 3, 16, 16)
    assert not torch.equal(judge(x), judge(x))
    judge.eval()
    assert torch.equal(judge(x), judge.D(x, False))
    with pytest.raises(Exception, match="there is no 'blur'; known: color, translation, cutout"):
        create_network(options | {"augmentation_types": ["blur"]})


def test_stylegans_discriminator_halves_by_the_mean_of_four_and_takes_dl_art_schools_names() -> None:
    torch.manual_seed(0)
    network = create_network({"which_model": "stylegan_vgg", "image_size": 256})
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert [shapes[f"blocks.{level}.conv1_down.weight"][0] for level in range(6)] == [128, 256, 512, 512, 512, 512]
    assert shapes["from_rgb.0.weight"] == (64, 3, 1, 1)
    assert shapes["final_block.conv.weight"] == (512, 513, 3, 3)
    theirs = network.state_dict() | {
        f"blocks.{level}.conv1_down.downscale.blur.kernel": torch.ones(1, 1, 2, 2) for level in range(6)
    }
    assert network.rename_state_dict(theirs).keys() == network.state_dict().keys()


def test_the_larger_vgg_discriminator_takes_the_smaller_ones_weights_behind_a_new_head() -> None:
    smaller = create_network({"which_model": "discriminator_vgg_128_gn", "nf": 16, "image_size": 32})
    larger = create_network({"which_model": "discriminator_vgg_448", "nf": 16, "image_size": 64})
    kept = larger.load_state_dict(smaller.state_dict(), strict=False)
    new = {name for name, weight in larger.named_parameters() if getattr(weight, "PARAM_GROUP", None) == "new_head"}
    assert set(kept.missing_keys) == new
    assert kept.unexpected_keys == []
    seen: list[str] = []
    larger.conv0_0.register_forward_hook(lambda *_: seen.append("conv0_0"))
    assert larger(torch.rand(2, 3, 64, 64)).shape == (2, 1)
    assert seen == []
