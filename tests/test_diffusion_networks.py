"""Diffusion networks beyond what every network must do: attention, precision, layout, classes, corruptions, sizes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dlas.archs import create_network
from dlas.errors import ConfigurationError
from dlas.layers.attention import AttentionPool, PixelAttention
from dlas.layers.group_norm import GroupNorm, groups_for
from dlas.registry import ARCHS

UNETS = ["guided_unet", "guided_superres", "guided_classifier", "unet_diffusion", "unet_diffusion_latent_guide"]
NETWORKS = [*UNETS, "rrdb_diffusion"]


def tiny(name: str, **more: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """A small network without a weight of 0, and arguments."""
    torch.manual_seed(0)
    options, inputs = ARCHS.get(name).tiny()
    network = create_network({"which_model": name, **options, **more})
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return network, inputs


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(T, C) each: softmax of all products, times the values."""
    return (q @ k.t() / math.sqrt(q.shape[1])).softmax(dim=1) @ v


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_is_its_formula_in_both_orders(heads_first, layout):
    torch.manual_seed(0)
    channels, heads = 12, 3
    block = PixelAttention(GroupNorm(channels, "dlas"), channels, heads, heads_first).double()
    nn.init.normal_(block.proj_out.weight)
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    found = block(x.contiguous(memory_format=layout))
    for sample, result in zip(x, found, strict=True):
        qkv = block.qkv(block.norm(sample[None]).flatten(2))[0]  # (3 C, T)
        parts = qkv.reshape(heads, 3, 4, 15).transpose(0, 1) if heads_first else qkv.reshape(3, heads, 4, 15)
        seen = torch.cat([written_out(*(parts[kind, head].t() for kind in range(3))) for head in range(heads)], dim=1)
        expected = sample + block.proj_out(seen.t()).reshape(sample.shape)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_attention_pool_is_its_formula():
    torch.manual_seed(0)
    pool = AttentionPool(side=3, channels=8, heads=2, out_channels=5).double()
    x = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    pixels = x.flatten(2)[0]
    pixels = torch.cat((pixels.mean(1, keepdim=True), pixels), dim=1) + pool.positional_embedding
    q, k, v = pool.qkv_proj(pixels).reshape(3, 2, 4, 10)
    seen = torch.cat([written_out(q[head].t(), k[head].t(), v[head].t()) for head in range(2)], dim=1)
    torch.testing.assert_close(pool(x)[0], pool.c_proj(seen.t())[:, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", UNETS)
def test_channels_last_changes_no_number(name):
    network, inputs = tiny(name)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    moved = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in inputs]
    torch.testing.assert_close(last(*moved), network(*inputs), rtol=1e-4, atol=1e-5)


def test_features_stay_in_channels_last():
    network, (x, times) = tiny("guided_unet")
    network.to(memory_format=torch.channels_last)
    layouts = []
    for stage in [*network.input_blocks, network.middle_block, *network.output_blocks]:
        stage.register_forward_hook(
            lambda module, inputs, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    network(x.contiguous(memory_format=torch.channels_last), times)
    assert len(layouts) == 9
    assert all(layouts)


class TestGroupNorm:
    def test_groups(self):
        rule = {4: 4, 8: 8, 16: 8, 24: 8, 32: 16, 48: 16, 64: 16, 72: 8, 96: 32, 100: 4, 128: 32}
        assert {channels: groups_for(channels, "dlas") for channels in rule} == rule
        assert groups_for(64, "guided") == 32
        with pytest.raises(ValueError, match="48 channels cannot be normalised in 32 groups"):
            groups_for(48, "guided")

    @pytest.mark.parametrize("autocast", [False, True])
    def test_precision(self, autocast):
        torch.manual_seed(0)
        x = torch.randn(2, 8, 4, 4).bfloat16()
        for low in (False, True):
            norm = GroupNorm(8, "dlas", low_precision=low)
            nn.init.uniform_(norm.weight, 1, 1.01)  # bfloat16 has no number between 1 and 1.0078
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = norm(x)
            weight = norm.weight.bfloat16().float() if low else norm.weight
            expected = F.group_norm(x.float(), 8, weight, norm.bias)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found, expected.bfloat16(), rtol=0.008 if low else 0, atol=0)

    @pytest.mark.parametrize("low", [False, True])
    def test_option_reaches_every_normalisation(self, low):
        network, _ = tiny("guided_unet", low_precision_norm=low)
        norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        assert len(norms) > 10
        assert all(norm.low_precision == low for norm in norms)


@pytest.mark.parametrize("name", UNETS)
def test_results_and_embeddings_are_not_rounded_by_autocast(name):
    network, inputs = tiny(name)
    seen = []
    embedder = network.unet if hasattr(network, "unet") else network
    embedder.time_embed.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        result = network(*inputs)
    assert result.dtype == torch.float32
    assert seen == [torch.float32]
    torch.testing.assert_close(result, network(*inputs), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_with_weights_that_all_count(name):
    network, inputs = tiny(name, **({} if name == "rrdb_diffusion" else {"dropout": 0.3}))
    found = []
    for checkpointing in (False, True):
        network.checkpointing = checkpointing
        network.zero_grad()
        torch.manual_seed(1)
        network(*inputs).square().mean().backward()
        found.append({name: weight.grad.clone() for name, weight in network.named_parameters()})
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-5, atol=1e-7, msg=key)


class TestClasses:
    def test_null_label_is_a_class_of_its_own(self):
        network, (x, times, low_res, _) = tiny("guided_superres")
        assert network.null_label == 3
        assert network.label_emb.num_embeddings == 4
        null = torch.full((2,), network.null_label)
        network(x, times, low_res, null).square().mean().backward()
        rows = network.label_emb.weight.grad.abs().sum(1)
        assert rows[3] > 0
        assert not rows[:3].any()

    def test_without_it_weights_are_the_published(self):
        network, _ = tiny("guided_superres", null_class=False)
        assert network.null_label is None
        assert network.label_emb.num_embeddings == 3

    def test_mistakes(self):
        with pytest.raises(ConfigurationError, match="null_class adds a class to num_classes"):
            tiny("guided_unet", null_class=True)
        network, (x, times) = tiny("guided_unet")
        with pytest.raises(ValueError, match="has no classes"):
            network(x, times, torch.tensor([0, 1]))
        network, (x, times, low_res, _) = tiny("guided_superres")
        with pytest.raises(ValueError, match=r"has classes .* and needs them in y"):
            network(x, times, low_res)

    def test_raw_embedding(self):
        network, (x, times, low_res, factors) = tiny("unet_diffusion", use_raw_y_as_embedding=True)
        plain, _ = tiny("unet_diffusion")
        plain.load_state_dict(network.state_dict())
        zeros = torch.zeros(2, 32)
        assert torch.equal(network(x, times, low_res, factors, zeros), plain(x, times, low_res, factors))
        assert not torch.equal(network(x, times, low_res, factors, zeros + 1), plain(x, times, low_res, factors))
        with pytest.raises(ValueError, match="but got no y"):
            network(x, times, low_res, factors)
        with pytest.raises(ConfigurationError, match="not both"):
            tiny("unet_diffusion", use_raw_y_as_embedding=True, num_classes=2)


class TestCorruptions:
    @pytest.mark.parametrize(("name", "place"), [("unet_diffusion", 3), ("rrdb_diffusion", 3)])
    def test_left_out_they_are_zero(self, name, place):
        network, inputs = tiny(name)
        zeros = torch.zeros_like(inputs[place])
        assert torch.equal(network(*inputs[:place]), network(*inputs[:place], zeros))
        assert not torch.equal(network(*inputs[:place]), network(*inputs))

    def test_each_sample_has_its_own(self):
        network, (x, times, low_res, factors) = tiny("unet_diffusion")
        both = network(x, times, low_res, factors)
        alone = network(x[1:], times[1:], low_res[1:], factors[1:])
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)

    def test_more_and_fewer_than_the_network_knows(self):
        network, (x, times, low_res, factors) = tiny("unet_diffusion")
        expected = network(x, times, low_res, factors)
        with pytest.warns(UserWarning, match="3 corruption factors were given, of which the network takes the first 2"):
            found = network(x, times, low_res, torch.cat((factors, factors[:, :1]), dim=1))
        assert torch.equal(found, expected)
        with pytest.raises(ValueError, match="told of 2 corruptions, but 1 factors were given"):
            network(x, times, low_res, factors[:, :1])
        rrdb, (x, times, low_res, factors) = tiny("rrdb_diffusion")
        with pytest.raises(ValueError, match=r"in_channels is 8, but 3 channels of noisy pictures, 3 of low.* 1 correction"):
            rrdb(x, times, low_res, factors[:, :1])

    def test_guide_works_without_them_where_the_network_knows_some(self):
        network, inputs = tiny("unet_diffusion_latent_guide")
        assert torch.equal(network(*inputs), network(*inputs, torch.zeros(2, 1)))


def test_the_guide_changes_the_picture():
    network, (x, times, guide, low_res) = tiny("unet_diffusion_latent_guide")
    assert not torch.allclose(network(x, times, guide, low_res), network(x, times, 1 - guide, low_res))


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_classifier_heads(pool):
    network, (x, times) = tiny("guided_classifier", pool=pool)
    logits = network(x, times)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(network(x[1:], times[1:]), logits[1:], rtol=1e-4, atol=1e-5)
    if pool == "spatial":  # the means of all stages, one after another
        assert network.out[0].in_features == 8 + 8 + 8 + 16 + 16


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("guided_unet", {"image_size": 9}, "image_size of 9 pixels is no multiple of 2"),
        ("guided_unet", {"num_heads": 3}, "16 channels cannot be divided among 3 heads"),
        ("guided_unet", {"num_head_channels": 5}, r"16 channels are no multiple of num_head_channels \(5\)"),
        ("guided_unet", {"norm_groups": "guided"}, "8 channels cannot be normalised in 32 groups"),
        ("guided_classifier", {"num_head_channels": -1}, "pool 'attention' needs num_head_channels"),
        ("unet_diffusion", {"use_fp16": True}, "set `precision: fp16`"),
        ("rrdb_diffusion", {"mid_channels": 12}, "mid_channels must be a multiple of 8, got 12"),
    ],
)
def test_options_that_do_not_go_together(name, options, words):
    with pytest.raises(ConfigurationError, match=words):
        tiny(name, **options)


def test_pictures_that_cannot_be_halved():
    network, (x, times) = tiny("guided_unet")
    with pytest.raises(ValueError, match="a picture's width of 7 pixels is no multiple of 2"):
        network(x[..., :7], times)
    classifier, (x, times) = tiny("guided_classifier")
    with pytest.raises(ValueError, match="positions for features of 4x4 pixels and got 3x4"):
        classifier(x[..., :6, :], times)
    rrdb, (x, times, low_res, factors) = tiny("rrdb_diffusion")
    with pytest.raises(ValueError, match="a picture's height of 6 pixels is no multiple of 4"):
        rrdb(x[..., :6, :], times, low_res, factors)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("guided_superres", {"channel_mult": [1, 1, 2]}),
        ("guided_superres", {"channel_mult": [1, 1, 2], "conditioning": "rrdb", "rrdb_channels": 8, "rrdb_blocks": 1}),
        ("unet_diffusion", {"channel_mult": [1, 1, 2]}),
    ],
)
def test_networks_that_enlarge_take_pictures_of_any_size(name, options):
    network, (x, times, low_res, *more) = tiny(name, **options)
    x, low_res = torch.randn(2, 3, 14, 10), torch.randn(2, 3, 7, 5)
    output = network(x, times, low_res, *more)
    assert output.shape[2:] == (14, 10)
    reflected = F.pad(low_res, (0, 1, 0, 1), mode="reflect")  # for a picture of 16 x 12, of which the rest is the same
    whole = network(F.pad(x, (0, 2, 0, 2), mode="reflect"), times, reflected, *more)
    assert whole.shape[2:] == (16, 12)
    assert not output.equal(network(x.flip(-1), times, low_res.flip(-1), *more))


def test_fractions_of_the_width():
    network, (x, times) = tiny("guided_unet", model_channels=16, channel_mult=[0.5, 1.5])
    assert network.feature_channels == [8, 8, 8, 24]
    assert network(x, times).shape == x.shape


def test_a_recipe_of_270_million_weights_can_be_rehearsed_without_memory():
    options = {"image_size": 256, "in_channels": 3, "num_corruptions": 2, "model_channels": 192, "out_channels": 6}
    options |= {"num_res_blocks": 2, "attention_resolutions": [8, 16], "channel_mult": [1, 1, 2, 2, 4, 4], "num_heads": 4}
    with FakeTensorMode():
        network = create_network({"which_model": "unet_diffusion", **options, "use_scale_shift_norm": True})
        network.checkpointing = True
        y = network(torch.empty(8, 3, 256, 256), torch.zeros(8), torch.empty(8, 3, 128, 128), torch.empty(8, 2))
        y.sum().backward()
    assert y.shape == (8, 6, 256, 256)
    assert sum(weight.numel() for weight in network.parameters()) == 270_168_966


def test_names_of_dl_art_schools_weights():
    """Of those networks for which there is no published layout."""
    with torch.device("meta"):
        options = {"image_size": 64, "in_channels": 3, "model_channels": 128, "out_channels": 6, "num_res_blocks": 1}
        guided = create_network(
            {"which_model": "unet_diffusion_latent_guide", **options, "attention_resolutions": [2], "channel_mult": [1, 4]}
        ).state_dict()
        rrdb = create_network({"which_model": "rrdb_diffusion", "in_channels": 8, "out_channels": 6}).state_dict()
    shapes = {
        "encoder.bn1.weight": (64,), "encoder.layer1.0.downsample.1.bias": (256,),
        "encoder.layer2.3.conv3.weight": (512, 128, 1, 1),
        "encoder.fc.weight": (512, 512), "unet.latent_join_reduce.in_layers.2.weight": (512, 1024, 3, 3),
        "unet.input_blocks.0.0.weight": (128, 6, 3, 3),
    }  # fmt: skip
    assert {key: tuple(guided[key].shape) for key in shapes} == shapes
    assert not any(key.startswith("encoder.layer3") for key in guided)
    shapes = {
        "input_block.conv.weight": (64, 8, 7, 7), "body.22.rdb1.first_conv.conv.bias": (64,),
        "body.22.rdb1.emb_layers.1.weight": (64, 256), "body.22.rdb3.normalize.weight": (64,), "body.22.normalize.bias": (64,),
        "body.22.residual_mult": (1,), "conv_hr.weight": (64, 128, 3, 3), "normalize.weight": (64,),
    }  # fmt: skip
    assert {key: tuple(rrdb[key].shape) for key in shapes} == shapes
    assert not any(".rdb2.first_conv" in key for key in rrdb)
