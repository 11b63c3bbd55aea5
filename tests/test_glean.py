"""GLEAN, its bank, and DL-Art-School's recipe for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.config import load
from dlas.engine.trainer import Trainer
from dlas.errors import CheckpointError, ConfigurationError
from dlas.interop.state_dicts import load_into, read_state_dict
from dlas.registry import ARCHS
from runs import batches

RECIPE = Path(__file__).parent / "upstream-recipes/glean/train_ffhq_glean.yml"


def glean(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_network({"which_model": "glean", **ARCHS.get("glean").tiny()[0], **more})


def bank(size: int = 16) -> nn.Module:
    torch.manual_seed(1)
    options = {"size": size, "style_dim": 8, "n_mlp": 8, "max_channels": 8}
    return create_network({"which_model": "stylegan2_rosinality_gen", **options})


@pytest.mark.parametrize("container", ["g_ema", None])
def test_the_bank_is_that_of_the_file_and_stays_as_it_is(container: str | None, tmp_path: Path) -> None:
    weights = bank().state_dict()
    torch.save({container: weights, "latent_avg": torch.zeros(8)} if container else weights, tmp_path / "bank.pth")
    network = glean(latent_bank_pretrained_weights=str(tmp_path / "bank.pth"))
    held = network.latent_bank.bank.state_dict()
    assert held.keys() == weights.keys()
    assert all(held[key].equal(value) for key, value in weights.items())
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained
    assert not any(name.startswith("latent_bank.bank.") for name in trained)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert all(weight.grad is None for weight in network.latent_bank.bank.parameters())


def test_a_missing_bank_is_named_and_so_is_what_to_fetch(tmp_path: Path) -> None:
    path = tmp_path / "stylegan2-ffhq-config-f.pth"
    with pytest.raises(
        CheckpointError, match=r"there is no file .*config-f\.pth .*fetch stylegan2-ffhq-config-f\.pkl"
    ) as error:
        glean(latent_bank_pretrained_weights=str(path))
    assert str(path) in str(error.value)
    torch.save(bank(32).state_dict(), path)
    glean(latent_bank_pretrained_weights=str(path), latent_bank_max_dim=32)
    with pytest.raises(CheckpointError, match="not the weights of a StyleGAN2 generator of 64 pixels"):
        glean(latent_bank_pretrained_weights=str(path), latent_bank_max_dim=64)


def test_published_layout() -> None:
    """Names and shapes of DL-Art-School's network at the sizes of its recipe."""
    with torch.device("meta"):
        network = create_network({"which_model": "glean", "nf": 64})
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["encoder.initial_conv.conv.weight"] == (64, 3, 7, 7)
    assert "encoder.rrdb_blocks.5.rdb3.conv5.weight" in shapes
    assert "encoder.rrdb_blocks.6.rdb1.conv1.weight" not in shapes
    reducers = [shapes[f"encoder.reducers.{level}.process.0.conv.weight"][:2] for level in range(4)]
    assert reducers == [(128, 64), (256, 128), (512, 256), (512, 512)]
    assert "encoder.reducers.0.process.0.conv.bias" not in shapes
    assert shapes["encoder.reducers.3.structural_latent_conv.conv.weight"] == (512, 512, 1, 1)
    assert shapes["encoder.latent_conv.conv.weight"] == (512, 512, 3, 3)
    assert shapes["encoder.latent_linear.weight"] == (8 * 512, 512)
    fusion = [shapes[f"latent_bank.fusion_blocks.{level}.conv.weight"][:2] for level in range(4)]
    assert fusion == [(512, 1024), (512, 768), (512, 640), (512, 576)]
    decoder = [shapes[f"decoder.decoder_blocks.{level}.conv.weight"][:2] for level in range(3)]
    assert decoder == [(512, 64 + 512), (256, 512 + 256), (128, 256 + 128)]
    assert shapes["decoder.final_decode.conv.weight"] == (3, 128, 3, 3)
    assert shapes["latent_bank.bank.noises.noise_16"] == (1, 1, 1024, 1024)


def test_the_bank_sees_features_of_its_sizes_and_latents_of_each() -> None:
    network = glean(input_dim=16, gen_output_dim=64, latent_bank_max_dim=128).eval()
    seen: list[tuple[Tensor, Tensor]] = []
    for layer in network.latent_bank.bank.convs:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[1], output)))
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        picture = network(x)
        _, structure, latents = network.encoder(x)
    assert picture.shape == (2, 3, 64, 64)
    assert [features.shape[-1] for features in structure] == [16, 8, 4]
    assert [output.shape[-1] for _, output in seen] == [8, 8, 16, 16, 32, 32, 64, 64]  # not up to 128: nothing looks at that
    assert all(torch.equal(style, latents[:, index // 2]) for index, (style, _) in enumerate(seen))


def test_results_repeat_in_evaluation_and_noise_is_drawn_in_training() -> None:
    network = glean()
    for layer in network.latent_bank.bank.modules():
        if type(layer).__name__ == "NoiseInjection":
            nn.init.constant_(layer.weight, 1.0)
    x = torch.rand(2, 3, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    "wrong", [{"input_dim": 12}, {"input_dim": 16}, {"gen_output_dim": 32}, {"initial_stride": 4}, {"initial_stride": 3}]
)
def test_sizes_that_do_not_go_together(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="must be powers of 2, with 4 <= input_dim / initial_stride < gen_output_dim"):
        glean(**wrong)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="for pictures of 8x8 and got 8x16"):
        glean()(torch.rand(1, 3, 8, 16))


def test_each_network_takes_its_own_weights_from_one_file_of_a_gan(tmp_path: Path) -> None:
    averaged, plain = bank(), bank()
    nn.init.ones_(averaged.input.input)
    options = {"which_model": "stylegan2_rosinality_disc", "size": 16, "max_channels": 8}
    judge, other = create_network(options), create_network(options)
    held = {"g": plain.state_dict(), "d": judge.state_dict(), "g_ema": averaged.state_dict(), "latent_avg": torch.zeros(8)}
    torch.save({**held, "g_optim": {"state": {}, "param_groups": []}}, tmp_path / "550000.pt")
    weights = read_state_dict(tmp_path / "550000.pt")
    generator = bank()
    load_into(generator, weights, source="file")
    assert generator.input.input.equal(averaged.input.input)
    load_into(other, weights, source="file")
    assert all(other.state_dict()[name].equal(value) for name, value in judge.state_dict().items())


def pictures(folder: Path, side: int) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(small, (side, side)))
    return folder


def shrunk(folder: Path) -> list[str]:
    """The recipe at 64 pixels, with a bank that nobody trained, and all gates open."""
    torch.save({"g_ema": bank(64).state_dict(), "latent_avg": torch.zeros(8)}, folder / "bank.pth")
    network = {"nf": 8, "encoder_rrdb_nb": 1, "input_dim": 8, "gen_output_dim": 64, "latent_bank_max_dim": 64}
    network |= {"latent_bank_latent_dim": 8, "latent_bank_max_channels": 8}
    network |= {"latent_bank_pretrained_weights": folder / "bank.pth"}
    data = {"paths": pictures(folder / "faces", 64), "target_size": 64, "batch_size": 2, "n_workers": 0}
    settings = [f"networks.generator.{key}={value}" for key, value in network.items()]
    settings += [f"datasets.train.{key}={value}" for key, value in data.items()]
    settings += ["networks.feature_discriminator.nf=8", "networks.feature_discriminator.image_size=64"]
    settings += ["steps.feature_discriminator.after=0", "steps.generator.losses.gan_gen_img.after=0"]
    settings += ["steps.generator.losses.feature.after=0", "steps.generator.losses.feature.random_weights=true"]
    return [*settings, f"path.experiments={folder}", "train.niter=2", "logger.print_freq=1", "logger.tensorboard=false"]


def test_the_recipe_trains(tmp_path: Path) -> None:
    run = Trainer(load(RECIPE, shrunk(tmp_path)))
    before = {name: {k: v.clone() for k, v in network.state_dict().items()} for name, network in run.networks.items()}
    for batch in batches(run, 2):
        run.iterate(batch)
    values = run.meter.read()
    assert all(values[f"generator/{loss}"] > 0 for loss in ("pix", "feature", "gan_gen_img"))
    assert values["feature_discriminator/gan_disc_img"] > 0
    for name, network in run.networks.items():
        for key, weight in network.named_parameters():
            assert weight.equal(before[name][key]) == key.startswith("latent_bank.bank."), key


def test_what_the_recipe_left_goes_on_without_the_banks_file(tmp_path: Path) -> None:
    settings = shrunk(tmp_path)
    first = Trainer(load(RECIPE, settings))
    first.run()
    (tmp_path / "bank.pth").unlink()
    saved = tmp_path / "train_faces_glean/checkpoints/2/generator.safetensors"
    settings += [
        "networks.generator.latent_bank_pretrained_weights=null",
        f"path.pretrain_model_generator={saved}",
        "name=next",
    ]
    second = Trainer(load(RECIPE, settings))
    for key, value in first.networks["generator"].state_dict().items():
        assert second.networks["generator"].state_dict()[key].equal(value), key
