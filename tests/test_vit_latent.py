"""`vit_latent`: the loss in closed form, what training does to latents, and resuming."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlas.archs.vit_latent import ViTLatent
from runs import assert_same_tensors, batches, rows, trainer

DIGITS = """
name: run
datasets:
  train:
    mode: byol_dataset
    batch_size: 32
    crop_size: 8
    key2: hq
    least_area: 0.6
    flip: 0
    for_sr: true
    dataset: {mode: digits, channels: 3}
networks:
  net: {which_model: vit_latent, top_dim: 16, hidden_dim: 32, depth: 2, num_heads: 4, patch_size: 2}
steps:
  net:
    training: net
    optimizer: adam
    optimizer_params: {lr: 0.004}
    injectors: {compare: {type: generator, generator: net, in: [aug1, aug2], out: loss}}
    losses: {contrastive: {type: direct, key: loss, weight: 1}}
train: {niter: 4}
logger: {print_freq: 1, save_checkpoint_freq: 2, tensorboard: false}
"""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(**more: object) -> tuple[ViTLatent, tuple[Tensor, Tensor]]:
    options, inputs = ViTLatent.tiny()
    return ViTLatent(**{**options, **more}), inputs


def cross_entropy(scores: Tensor) -> Tensor:
    """Mean over both directions, partners being on the diagonal."""
    return -(scores.log_softmax(1) + scores.log_softmax(0)).diagonal().mean() / 2


def test_the_loss_is_the_cross_entropy_of_finding_the_partner() -> None:
    network, (one, two) = tiny(temperature=0.5)
    network.eval()
    first, second = network.latents(one), network.latents(two)
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(network(one, two), cross_entropy(first @ second.T / 0.5))
    same = one[:1].expand(4, -1, -1, -1)
    torch.testing.assert_close(network(same, same), torch.tensor(math.log(4)))  # nothing can be told apart
    with torch.no_grad():
        network.log_scale.fill_(9.0)
    torch.testing.assert_close(network(one, two), cross_entropy(100 * first @ second.T))  # not exp(9)


def test_places_and_sizes() -> None:
    network, (pictures, _) = tiny(dropout=0.0)
    latents = network.latents(pictures)
    moved = pictures.roll(4, dims=-1)  # the same patches elsewhere
    assert (latents - network.latents(moved)).abs().max() > 1e-4
    assert network.latents(torch.rand(2, 3, 16, 12)).shape == (2, 4)
    for wrong, words in ((torch.rand(2, 3, 8, 10), "multiples of patch_size, 4"), (pictures[:1], "2 or more")):
        with pytest.raises(ValueError, match=words):
            network(wrong, wrong)
    with pytest.raises(ValueError, match="one shape"):
        network(pictures, pictures[..., :4])
    with pytest.raises(ValueError, match="multiple of 4 and of num_heads, 3; got 8"):
        tiny(num_heads=3)


def test_training_brings_views_of_one_image_together(tmp_path: Path) -> None:
    run = trainer(tmp_path, DIGITS, "train.niter=150", "logger.print_freq=25", "logger.save_checkpoint_freq=150")
    batch = batches(run, 1)[0]

    def found() -> float:
        """Share of first views whose nearest second view is of the same image."""
        with torch.no_grad():
            network = run.networks["net"].eval()
            nearest = (network.latents(batch["aug1"]) @ network.latents(batch["aug2"]).T).argmax(1)
            network.train()
        return nearest.eq(torch.arange(len(nearest))).float().mean().item()

    before = found()
    run.run()
    losses = [row["net/contrastive"] for row in rows(tmp_path / "run", "train")]
    assert losses[-1] < losses[0] / 2
    assert losses[-1] < math.log(32) - 1  # and well below what telling nothing apart costs
    assert found() > before + 0.3


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    trainer(tmp_path / "whole", DIGITS).run()
    trainer(tmp_path / "parts", DIGITS, "train.niter=2").run()
    trainer(tmp_path / "parts", DIGITS).run()
    assert_same_tensors(*(tmp_path / name / "run" / "checkpoints" / "4" for name in ("whole", "parts")))
