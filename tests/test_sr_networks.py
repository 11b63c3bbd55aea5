"""Networks for super-resolution and their discriminators: counts as published, pictures of any size, older names, layers."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.errors import ConfigurationError
from dlas.interop.option_files.basicsr import NETWORKS
from dlas.interop.state_dicts import load_into
from dlas.layers.padding import pad_to_multiple
from dlas.layers.spectral_norm import SpectralNormConv2d
from dlas.layers.stochastic_depth import StochasticDepth, rising
from dlas.layers.windows import cut_windows, join_windows, relative_position_index, shift_mask
from dlas.registry import ARCHS

PAGE = Path(__file__).resolve().parent.parent / "docs/super_resolution.md"
GENERATORS = ["SRVGGNetCompact", "MSRResNet", "EDSR", "RCAN", "SwinIR", "SPAN", "PLKSR", "RealPLKSR", "HAT", "DAT", "OmniSR"]
NOT_COUNTED = {("SwinIR", "K"): r"position_bias_table", ("OmniSR", "K"): r"rel_pos_bias|layer\.(4|5|6|10|11|12)\.norm"}
"""What papers that say how many thousand weights a network has leave out."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(name: str, **more: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    options, inputs = ARCHS.get(name).tiny()
    return create_network({"which_model": name, **options, **more}), inputs


def rows() -> list[tuple[str, str, str, str]]:
    found = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \| ([\d,]+) \| ([\d.]+ [KM]) \|", PAGE.read_text(), re.MULTILINE)
    assert len(found) > 30
    return found


@pytest.mark.parametrize(("name", "settings", "weights", "published"), rows(), ids=lambda value: value[:40])
def test_as_many_weights_as_published(name: str, settings: str, weights: str, published: str) -> None:
    with torch.device("meta"):
        network = create_network({"which_model": name, **yaml.safe_load(settings)})
    counts = {key: weight.numel() for key, weight in network.named_parameters()}
    assert sum(counts.values()) == int(weights.replace(",", ""))
    number, unit = published.split()
    left_out = NOT_COUNTED.get((name, unit), "$^")
    counted = sum(count for key, count in counts.items() if not re.search(left_out, key))
    last_digit = 10 ** -len(number.partition(".")[2])
    assert abs(counted / {"K": 1e3, "M": 1e6}[unit] - float(number)) < last_digit


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("size", [(16, 16), (7, 13), (3, 1)])
def test_pictures_of_any_size(name: str, size: tuple[int, int]) -> None:
    network, _ = tiny(name)
    with torch.no_grad():
        y = network.eval()(torch.rand(1, 3, *size))
    scale = ARCHS.get(name).tiny()[0].get("scale", 4)
    assert y.shape == (1, 3, *(scale * side for side in size))
    assert y.isfinite().all()


@pytest.mark.parametrize("name", [*GENERATORS, "UNetDiscriminatorSN", "PatchGANDiscriminatorSN"])
def test_memory_layout_changes_no_number(name: str) -> None:
    network, (x,) = tiny(name)
    network.eval()
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, found = network(x), other(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*GENERATORS, "UNetDiscriminatorSN", "stylegan2_rosinality_disc"])
def test_can_be_copied_after_a_forward(name: str) -> None:
    """Averages of weights are kept in a copy."""
    network, (x,) = tiny(name)
    network(x).sum().backward()
    copied = copy.deepcopy(network).eval()
    with torch.no_grad():
        assert torch.equal(copied(x), network.eval()(x))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SRVGGNetCompact", {"act_type": "gelu"}, "act_type must be prelu, relu or leakyrelu, got 'gelu'"),
        ("SRVGGNetCompact", {"num_in_ch": 1}, r"num_in_ch \(1\) must be num_out_ch \(3\)"),
        ("MSRResNet", {"scale": 8}, "scale must be 2, 3 or 4, got 8"),
        ("EDSR", {"scale": 6}, "scale must be 1, 2, 3, 4, 8 or a higher power of 2, got 6"),
        ("RCAN", {"num_in_ch": 1}, "set norm to false"),
        ("RCAN", {"num_feat": 2}, r"num_feat \(2\) must be at least squeeze_factor \(4\)"),
        ("SwinIR", {"upsampler": ""}, "upsampler '' is for scale 1, got scale 2"),
        ("SwinIR", {"upsampler": "nearest+conv", "scale": 3}, "is for scale 2, 4 or 8, got scale 3"),
        ("SwinIR", {"upsampler": "bilinear"}, "upsampler must be one of 'pixelshuffle'"),
        ("SwinIR", {"num_heads": [2]}, "depths has 2 entries and num_heads 1"),
        ("SwinIR", {"num_heads": [3, 3]}, r"embed_dim \(8\) must be a multiple of each of num_heads"),
        ("SwinIR", {"img_size": 10}, r"img_size \(10\) must be a multiple of window_size \(4\)"),
        ("SwinIR", {"resi_connection": "2conv"}, "resi_connection must be 1conv, 3conv or identity, got '2conv'"),
        ("PLKSR", {"ccm_type": "XCM"}, "ccm_type must be one of CCM, ICCM, DCCM, got 'XCM'"),
        ("PLKSR", {"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ("PLKSR", {"split_ratio": 0.01}, "leaves none for the large kernels"),
        ("RealPLKSR", {"upsampler": "nearest"}, "upsampler must be pixelshuffle or dysample, got 'nearest'"),
        ("HAT", {"window_size": 6}, "overlapping windows of 9; the difference must be even"),
        ("HAT", {"squeeze_factor": 30}, r"must be at most embed_dim \(8\), got 30"),
        ("DAT", {"split_size": [4, 6]}, "two sides of which one is a multiple of the other"),
        ("DAT", {"num_heads": [1, 2]}, "which must be even"),
        ("DAT", {"img_size": 10}, r"img_size \(10\) must be a multiple of both of split_size"),
        ("OmniSR", {"num_feat": 10}, "num_feat must be a multiple of 4"),
        ("NLayerDiscriminator", {"norm": "layer"}, "norm must be batch, instance, spectral or none, got 'layer'"),
        ("stylegan2_rosinality_disc", {"size": 24}, "size must be a power of 2, 8 at least, got 24"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny(name, **options)


def test_presets_of_other_programs_are_networks_of_ours() -> None:
    for name, (ours, renamed, added) in NETWORKS.items():
        known = {parameter.name for parameter in ARCHS.find(ours).parameters}
        assert {*renamed.values(), *added} <= known, name
        with torch.device("meta"):
            create_network({"which_model": ours, **added, **({"scale": 1} if added.get("upsampler") == "" else {})})


class TestOlderNames:
    def test_edsr_of_the_authors(self) -> None:
        network, _ = tiny("EDSR", scale=4)
        own = network.state_dict()
        theirs = {}
        for key, value in own.items():
            key = key.replace("conv_first", "head.0").replace("conv_after_body", "body.2").replace("conv_last", "tail.1")
            key = re.sub(r"^upsample\.", "tail.0.", key).replace("conv1", "body.0").replace("conv2", "body.2")
            theirs[key] = value
        assert {"head.0.weight", "body.1.body.2.bias", "body.2.weight", "tail.0.2.weight", "tail.1.bias"} <= set(theirs)
        theirs |= {"sub_mean.weight": torch.eye(3), "add_mean.bias": torch.zeros(3)}
        renamed = network.rename_state_dict(theirs)
        assert renamed.keys() == own.keys()
        assert all(renamed[key] is value for key, value in own.items())

    def test_rcan_of_basicsr(self) -> None:
        network, _ = tiny("RCAN", num_group=2, num_block=3)
        names = {
            "conv_first.weight": "head.0.weight",
            "body.1.residual_group.2.rcab.0.weight": "body.1.body.2.body.0.weight",
            "body.1.residual_group.2.rcab.2.bias": "body.1.body.2.body.2.bias",
            "body.0.residual_group.2.rcab.0.weight": "body.0.body.2.body.0.weight",
            "body.0.residual_group.1.rcab.3.attention.1.weight": "body.0.body.1.body.3.conv_du.0.weight",
            "body.0.residual_group.1.rcab.3.attention.3.bias": "body.0.body.1.body.3.conv_du.2.bias",
            "body.1.conv.weight": "body.1.body.3.weight",
            "conv_after_body.bias": "body.2.bias",
            "upsample.0.weight": "tail.0.0.weight",
            "conv_last.weight": "tail.1.weight",
        }
        own = network.state_dict()
        renamed = network.rename_state_dict({old: own[new] for old, new in names.items()})
        assert all(renamed[new] is own[new] for new in names.values())
        for name in ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias"):
            torch.testing.assert_close(renamed[name], own[name])

    def test_msrresnet_of_before_basicsr(self) -> None:
        network, _ = tiny("MSRResNet")
        own = network.state_dict()
        old = {key.replace("body.", "recon_trunk.").replace("conv_hr", "HRconv"): value for key, value in own.items()}
        assert list(network.rename_state_dict(old)) == list(own)

    @pytest.mark.parametrize("name", ["SwinIR", "DAT"])
    def test_masks_of_another_size_are_passed_over(self, name: str) -> None:
        network, (x,) = tiny(name)
        other, _ = tiny(name, img_size=16)
        load_into(network, other.state_dict(), source="other")
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x), other.eval()(x))

    def test_counters_in_omnisr(self) -> None:
        network, _ = tiny("OmniSR")
        load_into(network, {**network.state_dict(), "input.total_ops": torch.zeros(1)}, source="other")


class TestSPAN:
    @pytest.mark.parametrize("norm", [True, False])
    def test_trained_used_and_fused_do_the_same(self, norm: bool) -> None:
        network, (x,) = tiny("SPAN", norm=norm)
        fused = network.fuse()
        with torch.no_grad():
            expected = network.train()(x)
            torch.testing.assert_close(network.eval()(x), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
        assert not [key for key in fused.state_dict() if ".sk." in key or ".conv." in key]
        again, _ = tiny("SPAN", norm=norm, fused=True)
        again.load_state_dict(fused.state_dict())
        assert all(weight.requires_grad for weight in fused.parameters())

    def test_what_is_saved_is_what_was_trained(self) -> None:
        network, (x,) = tiny("SPAN")
        optimiser = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=1e-2)
        network(x).square().mean().backward()
        optimiser.step()
        saved = {key: value.clone() for key, value in network.state_dict().items()}
        weight, bias = network.conv_1.compose()
        assert torch.equal(saved["conv_1.eval_conv.weight"], weight)
        assert torch.equal(saved["conv_1.eval_conv.bias"], bias)


class TestDAT:
    def test_recomputing_counts_each_batch_once(self) -> None:
        network, (x,) = tiny("DAT")
        network.checkpointing = True
        network(x).sum().backward()
        counts = {int(value) for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
        assert counts == {1}


class TestDiscriminators:
    def test_a_logit_for_every_pixel(self) -> None:
        network, _ = tiny("UNetDiscriminatorSN")
        assert network(torch.rand(2, 3, 13, 27)).shape == (2, 1, 13, 27)

    def test_patches_of_70_pixels(self) -> None:
        network = create_network({"which_model": "NLayerDiscriminator", "ndf": 4, "norm": "none"}).double()
        x = torch.rand(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
        y = network(x)
        y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
        assert x.grad is not None
        seen = x.grad[0].abs().sum(0)
        assert [int((seen.sum(dim) > 0).sum()) for dim in (0, 1)] == [70, 70]

    @pytest.mark.parametrize("name", ["NLayerDiscriminator", "PatchGANDiscriminatorSN"])
    def test_pictures_without_a_patch(self, name: str) -> None:
        network, _ = tiny(name)
        assert network(torch.rand(2, 3, 24, 24)).shape == (2, 1, 1, 1)
        with pytest.raises(ValueError, match="pictures of 24x23 are too small for 3 layers, which need 24 pixels"):
            network(torch.rand(2, 3, 24, 23))

    def test_several_scales(self) -> None:
        """The finest first; each network sees the picture half as large as the one before."""
        options = {"which_model": "MultiscaleDiscriminator", "ndf": 4, "num_scales": 2, "norm": "none"}
        network, x = create_network(options), torch.rand(1, 3, 64, 48)
        fine, coarse = network(x)
        torch.testing.assert_close(fine, network.layer1(x))
        sums, counts = (F.avg_pool2d(F.pad(each, (1, 1, 1, 1)), 3, 2) for each in (x, torch.ones_like(x)))
        torch.testing.assert_close(coarse, network.layer0(sums / counts))
        assert fine.shape == (1, 1, 11, 9)  # padded by two pixels, as pix2pixHD's
        with pytest.raises(
            ValueError, match="pictures of 64x47 are too small for 2 scales, which need 48 pixels; lower num_scales"
        ):
            network(x[..., :47])

    def test_several_scales_with_the_names_of_feature_matching(self) -> None:
        network = create_network({"which_model": "MultiscaleDiscriminator", "ndf": 4, "n_layers": 2, "num_scales": 2})
        own = network.state_dict()
        groups = {"0": "layer0.0", "2": "layer1.0", "5": "layer2.0", "8": "layer3.0"}
        theirs = {}
        for key, value in own.items():
            scale, place, kind = key.removeprefix("layer").split(".")
            theirs[f"scale{scale}_{groups[place]}.{kind}"] = value
        assert list(network.rename_state_dict(theirs)) == list(own)
        assert list(network.rename_state_dict(own)) == list(own)

    def test_spread_of_a_group(self) -> None:
        """Equal pictures have none; each group has its own; batches that 4 does not divide are cut, too."""
        network, (x,) = tiny("stylegan2_rosinality_disc")
        network.eval()
        alone = network(x[:1])
        torch.testing.assert_close(network(x[:1].expand(4, -1, -1, -1)), alone.expand(4, 1), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(network(x)[:1], alone)
        assert network(torch.cat((x, x))[:6]).shape == (6, 1)

    def test_spectral_norm_is_one_after_some_forwards(self) -> None:
        conv = SpectralNormConv2d(6, 5, 3, padding=1)
        for _ in range(200):
            conv(torch.rand(1, 6, 4, 4))
        singular = torch.linalg.svdvals(conv.normalised_weight().flatten(1))
        assert singular[0].item() == pytest.approx(1, abs=1e-4)
        before = conv.weight_u.clone()
        conv.eval()(torch.rand(1, 6, 4, 4))
        assert torch.equal(conv.weight_u, before)

    def test_two_forwards_before_the_backward(self) -> None:
        """The first one's gradient is that of the singular vectors it was computed with."""
        conv = SpectralNormConv2d(3, 4, 3)
        x = torch.rand(2, 3, 5, 5)
        alone, both = copy.deepcopy(conv), copy.deepcopy(conv)
        alone(x).sum().backward()
        first = both(x)
        both(x)
        first.sum().backward()
        assert torch.equal(alone.weight_orig.grad, both.weight_orig.grad)


class TestLayers:
    def test_windows_are_cut_row_by_row_and_joined(self) -> None:
        x = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
        windows = cut_windows(x, (2, 3))
        assert windows.shape == (2, 4, 6, 1)
        assert torch.equal(windows[0, 1].flatten(), x[0, :2, 3:].flatten())
        assert torch.equal(join_windows(windows, (2, 3), (4, 6)), x)

    def test_mask_parts_what_was_not_together(self) -> None:
        """Two places of a window see each other if they lie as far apart in the picture as they do in the window."""
        size, window, shift = (8, 12), (4, 6), (2, 3)
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
        place = torch.stack((rows, columns), dim=-1).roll((-2, -3), (0, 1))
        rolled = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij"), dim=-1)
        before, after = (cut_windows(each[None], window)[0] for each in (place, rolled))
        together = ((before[:, :, None] - before[:, None]) == (after[:, :, None] - after[:, None])).all(-1)
        mask = shift_mask(size, window, shift)
        assert torch.equal(mask == 0, together)
        assert 0 < together.float().mean() < 1

    def test_relative_positions(self) -> None:
        index = relative_position_index((2, 3))
        assert index.shape == (6, 6)
        assert index.diagonal().eq(1 * 5 + 2).all()  # no distance: the middle of a table of 3 x 5
        assert index[0, 5] == 0  # one row and two columns before
        assert index.unique().numel() == 15

    @pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 16), (8, 8), (9, 1)])
    def test_padding_reflects_as_often_as_needed(self, size: tuple[int, int]) -> None:
        x = torch.rand(1, 2, *size)
        y = pad_to_multiple(x, 8)
        assert all(side % 8 == 0 and side - old < 8 for side, old in zip(y.shape[-2:], size, strict=True))
        assert torch.equal(y[..., : size[0], : size[1]], x)
        assert y is x or size != (8, 8)
        if size == (3, 16):
            assert torch.equal(y, x[..., [0, 1, 2, 1, 0, 1, 2, 1], :])

    def test_padding_to_a_least_size_with_zeros(self) -> None:
        y = pad_to_multiple(torch.ones(1, 1, 5, 20), 8, minimum=16, mode="constant")
        assert y.shape == (1, 1, 16, 24)
        assert y.sum() == 100

    def test_stochastic_depth_keeps_the_mean(self) -> None:
        layer = StochasticDepth(0.25)
        y = layer(torch.ones(8000, 1, 1))
        assert y.unique().tolist() == [0, pytest.approx(4 / 3)]
        assert y.mean().item() == pytest.approx(1, abs=0.03)
        assert torch.equal(layer.eval()(y), y)

    def test_probabilities_rise_over_all_groups(self) -> None:
        assert rising(0.3, [2, 2]) == [[0.0, pytest.approx(0.1)], [pytest.approx(0.2), pytest.approx(0.3)]]
        assert rising(0.3, [1]) == [[0.0]]

    def test_learned_sampling_starts_bilinear(self) -> None:
        """Offsets are drawn small: at zero, DySample is bilinear enlargement of each channel."""
        from dlas.archs.plksr import DySample

        layer = DySample(8, 3, scale=2, groups=4)
        nn.init.zeros_(layer.offset.weight)
        nn.init.zeros_(layer.offset.bias)
        layer.end_conv = nn.Identity()
        x = torch.rand(2, 8, 5, 7)
        expected = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_rcan_in_bfloat16_keeps_the_precision_of_the_mean() -> None:
    network, (x,) = tiny("RCAN")
    with torch.autocast("cpu", torch.bfloat16):
        shifted: Tensor = network.sub_mean(x * 255)
    assert shifted.dtype == torch.float32
    mean = torch.tensor([0.4488, 0.4371, 0.4040])[:, None, None]
    torch.testing.assert_close(shifted, (x - mean) * 255, rtol=1e-5, atol=1e-4)
