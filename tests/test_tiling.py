"""Tiles join to what the network makes of the whole picture, or fade into each other; memory decides about their size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.engine.passes.ensemble import self_ensemble
from dlas.engine.passes.reach import measure_reach
from dlas.engine.passes.tiling import SMALLEST, Tiler, plan
from dlas.errors import TrainingError

CPU = torch.device("cpu")


def network(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    built = create_network({"which_model": name, **options}).eval().requires_grad_(False)
    for parameter in built.parameters():
        parameter.mul_(1.5)  # as far from vanishing as those of trained networks
    return built


def tiler(net: nn.Module, scale: int, tile: Any, **options: Any) -> Tiler:
    return Tiler(net, net, net, channels=3, scale=scale, device=CPU, tile=tile, **options)


def scene(height: int, width: int) -> Tensor:
    """Smooth shapes, edges and noise."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.linspace(0, 9, height)[:, None], torch.linspace(0, 11, width)
    base = (torch.sin(y * x) + torch.cos(3 * x) * (y > 4)) / 4 + 0.5
    return (base + 0.1 * torch.randn(1, 3, height, width, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize(("length", "side", "halo", "fade", "grid"), [
    (100, 30, 8, 0, 1), (101, 17, 8, 4, 1), (64, 64, 8, 0, 8), (65, 16, 8, 8, 8), (7, 3, 1, 1, 1), (5, 50, 8, 4, 4),
    (50, 8, 16, 16, 4),
])  # fmt: skip
def test_weights_of_tiles_add_up_to_one(length, side, halo, fade, grid):
    total = torch.zeros(length)
    for span in plan(length, side, halo, fade, grid):
        assert span.start % grid == 0 and len(span.weights) == span.stop - span.start
        total[span.start : span.stop] += span.weights
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize(("size", "tile"), [((67, 83), 32), ((48, 97), 17), ((64, 64), 32)])
@pytest.mark.parametrize(
    ("net", "scale"),
    [
        (network("RRDBNet", nf=8, nb=1, gc=4), 4),
        (network("SRVGGNetCompact", num_feat=16, num_conv=4), 4),
        (network("SPAN", feature_channels=8, scale=2, img_range=1.0), 2),
    ],
    ids=["RRDBNet", "Compact", "SPAN"],
)
def test_convolutional_networks_in_tiles_are_as_on_the_whole_picture(net, scale, size, tile):
    picture = scene(*size)
    tiled = tiler(net, scale, tile)
    result = tiled(picture)
    assert tiled.reach.exact
    torch.testing.assert_close(result, net(picture), rtol=0, atol=1e-5)


def test_tiles_need_their_halo():
    """The comparison above could otherwise say nothing."""
    net = network("RRDBNet", nf=16, nb=3, gc=8)
    picture = scene(67, 83)
    assert (tiler(net, 4, 32, halo=2)(picture) - net(picture)).abs().max() > 1e-4


def test_the_measured_reach_is_that_of_the_layers():
    net = network("SRVGGNetCompact", num_feat=16, num_conv=8)
    assert measure_reach(net, scene(80, 80), 4).halo in (12, 16)  # 10 convolutions of 3x3: 10 pixels


def test_folded_input_is_cut_at_its_multiples():
    net = network("RRDBNet", nf=16, nb=2, gc=8, scale=2)
    picture = scene(66, 84)
    torch.testing.assert_close(tiler(net, 2, 31, grid=2)(picture), net(picture), rtol=0, atol=1e-5)


WINDOWS = {"img_size": 16, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8, "scale": 2}


def test_windows_at_their_places_are_as_on_the_whole_picture():
    net = network("SwinIR", **WINDOWS)
    picture = scene(56, 104)
    tiled = tiler(net, 2, 24, grid=8)
    torch.testing.assert_close(tiled(picture), net(picture), rtol=0, atol=1e-5)


class Relative(nn.Module):
    """Depends on the mean of all it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((2, 3), keepdim=True)).repeat_interleave(2, 2).repeat_interleave(2, 3)


def step_at(picture: Tensor, column: int) -> float:
    """How much more the picture changes from one column to the next than it does elsewhere."""
    change = picture.diff(dim=-1).abs().mean((0, 1, 2))
    return float(change[column - 1] - change.median())


def test_what_looks_at_the_whole_picture_fades_without_a_seam():
    ramp = torch.linspace(0, 1, 512).expand(1, 3, 96, 512)
    tiled = tiler(Relative(), 2, 128)
    result = tiled(ramp)
    assert not tiled.reach.exact
    cut = tiler(Relative(), 2, 128, halo=16)(ramp)
    assert max(step_at(cut, 256 * k) for k in (1, 2, 3)) > 0.1, "without fading there is a seam"
    assert max(step_at(result, 256 * k) for k in (1, 2, 3)) < 0.01


def test_a_network_with_channel_attention_differs_little_and_has_no_seam(monkeypatch):
    monkeypatch.setattr("dlas.engine.passes.reach.LIMIT", 32)
    net = network("HAT", embed_dim=12, depths=[2], num_heads=[2], window_size=4, scale=2, num_feat=8,
                  compress_ratio=3, squeeze_factor=4, conv_scale=1.0)  # fmt: skip
    picture = scene(48, 192)
    tiled = tiler(net, 2, 64, grid=4)
    result, whole = tiled(picture), net(picture)
    assert not tiled.reach.exact
    assert (result - whole).abs().max() < 0.02 * whole.std()
    assert abs(step_at(result - whole, 128)) < 1e-3


class Hungry(nn.Module):
    """Has room for so many pixels at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(x.shape[-1] * x.shape[-2])
        if self.sizes[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return x + 1


def test_tiles_are_halved_until_memory_suffices():
    net = Hungry(80 * 80)
    tiled = tiler(net, 1, "auto")
    picture = scene(200, 300)
    torch.testing.assert_close(tiled(picture), picture + 1)
    failed = sum(size > net.room for size in net.sizes)
    assert failed > 1
    tiled(picture)  # what was found is kept
    assert sum(size > net.room for size in net.sizes) == failed


@pytest.mark.parametrize(("tile", "words"), [("auto", "another device"), (0, "tile auto"), (64, "smaller tiles")])
def test_what_memory_never_suffices_for(tile, words):
    net = Hungry(0) if tile != "auto" else Hungry(SMALLEST)
    tiled = Tiler(net, nn.Identity(), nn.Identity(), channels=3, scale=1, device=CPU, tile=tile, halo=0)
    tiled._most = 10**9
    with pytest.raises(TrainingError, match=f"300 x 200 pixels ran out of memory: CUDA out of memory.*{words}"):
        tiled(scene(200, 300))


def test_other_errors_pass():
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Tiler(broken, broken, nn.Identity(), channels=3, scale=1, device=CPU, tile=0)(scene(8, 8))


def test_a_plan_for_little_memory_makes_tiles(monkeypatch):
    net = network("SRVGGNetCompact", num_feat=16, num_conv=2)
    monkeypatch.setattr("dlas.engine.passes.tiling.free_memory", lambda device: 30_000_000)
    sizes = []
    tiled = Tiler(lambda x: sizes.append(x.shape) or net(x), net, net, channels=3, scale=4, device=CPU)
    picture = scene(150, 170)
    torch.testing.assert_close(tiled(picture), net(picture), rtol=0, atol=1e-5)
    assert len(sizes) > 4


def test_self_ensemble_is_the_mean_and_turns_with_the_picture():
    net = network("SRVGGNetCompact", num_feat=8, num_conv=2)
    picture = scene(20, 28)
    result = self_ensemble(net, picture)
    torch.testing.assert_close(self_ensemble(net, picture.flip(-1).rot90(1, (-2, -1))), result.flip(-1).rot90(1, (-2, -1)))
    assert (result - net(picture)).abs().max() > 1e-4
    torch.testing.assert_close(self_ensemble(lambda x: x, picture), picture)
