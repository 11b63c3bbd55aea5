"""EDM2's U-Net, DiT, cross-attention, autoencoders and conditioning on low-resolution features, beyond what all networks do."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.context import Context
from dlas.diffusion import create_process
from dlas.engine.ema import ModelEma
from dlas.errors import ConfigurationError
from dlas.injectors import create_injector
from dlas.layers.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from dlas.layers.positions import sine_positions
from dlas.layers.spatial_transformer import CrossAttention
from dlas.layers.token_norm import TokenNorm
from dlas.layers.vector_quantizer import VectorQuantizer, nearest
from dlas.losses import create_loss
from dlas.registry import ARCHS

DENOISERS = ["edm2_unet", "dit", "cross_attention_unet"]
NETWORKS = [*DENOISERS, "autoencoder_kl", "autoencoder_vq"]


def tiny(name: str, **more: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """A small network without a weight of 0, and arguments."""
    torch.manual_seed(0)
    options, inputs = ARCHS.get(name).tiny()
    network = create_network({"which_model": name, **options, **more})
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.3)
    return network, inputs


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def scalar(result: Any) -> Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return torch.stack([part.square().mean() for part in parts if part.requires_grad]).sum()


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)


class TestAll:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_channels_last_changes_no_number(self, name):
        network, inputs = tiny(name)
        network.eval()
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        moved = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in inputs]
        torch.testing.assert_close(first(last(*moved)), first(network(*inputs)), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("low", [False, True])
    def test_results_are_not_rounded_by_autocast(self, name, low):
        network, inputs = tiny(name, low_precision_norm=low)
        network.eval()
        with torch.autocast("cpu", torch.bfloat16):
            result = first(network(*inputs))
        assert result.dtype == torch.float32
        assert not torch.equal(result, result.bfloat16().float())
        if name != "autoencoder_vq":  # there another code may be the nearest
            torch.testing.assert_close(result, first(network(*inputs)), rtol=0.1, atol=0.1)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_recomputing_with_weights_that_all_count(self, name):
        network, inputs = tiny(name, dropout=0.3)
        found = []
        for checkpointing in (False, True):
            network.checkpointing = checkpointing
            network.zero_grad()
            torch.manual_seed(1)
            scalar(network(*inputs)).backward()
            found.append({key: weight.grad.clone() for key, weight in network.named_parameters()})
        assert all(gradient.any() for gradient in found[0].values())
        for key, gradient in found[0].items():
            torch.testing.assert_close(found[1][key], gradient, rtol=1e-4, atol=1e-6, msg=key)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_compiles_as_a_whole_with_weights_that_all_count(self, name):
        network, inputs = tiny(name)
        compiled = copy.deepcopy(network)
        expected = network(*inputs)
        scalar(expected).backward()
        found = torch.compile(compiled, backend="eager", fullgraph=True)(*inputs)
        scalar(found).backward()
        torch.testing.assert_close(first(found), first(expected), rtol=1e-4, atol=1e-5)
        for (key, one), two in zip(compiled.named_parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-5, msg=key)

    @pytest.mark.parametrize("name", DENOISERS)
    def test_samples_do_not_see_each_other(self, name):
        network, inputs = tiny(name)
        alone = network(*(each[1:] for each in inputs))
        torch.testing.assert_close(network(*inputs)[1:], alone, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "options", "words"),
        [
            ("edm2_unet", {"image_size": 9}, "image_size of 9 pixels is no multiple of 2"),
            ("edm2_unet", {"channels_per_head": 5}, r"16 channels are no multiple of channels_per_head \(5\)"),
            ("dit", {"image_size": 9}, r"image_size of 9 pixels is no multiple of patch_size \(2\)"),
            ("dit", {"num_heads": 3}, r"hidden_size \(16\) must be a multiple of num_heads \(3\)"),
            ("dit", {"num_classes": None}, "null_class adds a class to num_classes"),
            ("cross_attention_unet", {"num_heads": 3}, "16 channels cannot be divided among 3 heads"),
            ("guided_superres", {"conditioning": "nearest"}, "conditioning must be 'bilinear', 'bicubic' or 'rrdb'"),
        ],
    )
    def test_options_that_do_not_go_together(self, name, options, words):
        with pytest.raises(ConfigurationError, match=words):
            tiny(name, **options)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_pictures_that_cannot_be_halved(self, name):
        network, (x, *rest) = tiny(name)
        with pytest.raises(ValueError, match=r"a picture's width of 7 pixels is no multiple of (patch_size \()?2"):
            network(x[..., :7], *rest)

    @pytest.mark.parametrize("name", ["edm2_unet", "dit"])
    def test_classes_are_given_where_there_are_some(self, name):
        network, (x, times, _) = tiny(name)
        with pytest.raises(ValueError, match=r"has classes .* and needs them in y"):
            network(x, times)
        network, (x, times, y) = tiny(name, num_classes=None, **({"null_class": False} if name == "dit" else {}))
        with pytest.raises(ValueError, match="has no classes"):
            network(x, times, y)


class TestPublishedSizes:
    """Of which the count of weights is published with the digits that are compared."""

    @pytest.mark.parametrize(
        ("options", "millions"),
        [
            # Karras et al. 2024, table 2 (in the repository: presets edm2-img512-*).
            *(
                ({"which_model": "edm2_unet", "in_channels": 4, "out_channels": 4, "model_channels": c, "num_classes": 1000}, n)
                for c, n in ((128, "125"), (192, "280"), (256, "498"), (320, "777"), (384, "1119"), (448, "1523"))
            ),
            # Peebles and Xie 2023, table 4.
            *(
                (
                    {"which_model": "dit", "out_channels": 8, "num_classes": 1000, "null_class": True}
                    | {"hidden_size": c, "depth": d, "num_heads": h},
                    n,
                )
                for c, d, h, n in ((384, 12, 6, "33"), (768, 12, 12, "130"), (1024, 24, 16, "458"), (1152, 28, 16, "675"))
            ),
            # "DiffusionWrapper has 859.52 M params", as Stable Diffusion 1 says when it is loaded.
            ({"which_model": "cross_attention_unet"}, "859.52"),
            # Stable Diffusion's autoencoder, in any listing of its modules.
            ({"which_model": "autoencoder_kl"}, "83.65"),
        ],
    )
    def test_count(self, options, millions):
        with torch.device("meta"):
            network = create_network(options)
        count = sum(weight.numel() for weight in network.parameters()) / 1e6
        digits = len(millions.partition(".")[2])
        assert f"{count:.{digits}f}" == millions


class TestMagnitudes:
    def test_sums_and_joins_and_activations(self):
        torch.manual_seed(0)
        a, b = torch.randn(2, 40000, 1, 1), torch.randn(2, 10000, 1, 1)
        for share in (0.1, 0.5, 0.8):
            assert mp_sum(a, torch.randn_like(a), share).std().item() == pytest.approx(1, rel=0.02)
            joined = mp_cat(a, b, share)
            assert joined.std().item() == pytest.approx(1, rel=0.02)
            parts = joined.split((40000, 10000), dim=1)
            ratio = parts[1].square().sum().sqrt() / parts[0].square().sum().sqrt()
            assert ratio.item() == pytest.approx(share / (1 - share), rel=0.03)
        assert mp_silu(a).square().mean().sqrt().item() == pytest.approx(1, rel=0.02)
        assert MPFourier(20000)(torch.randn(3)).square().mean().sqrt().item() == pytest.approx(1, rel=0.02)
        normalized = normalize(5 * a + 3, 1)
        torch.testing.assert_close(normalized.square().mean(1), torch.ones(2, 1, 1), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("low", [False, True])
    def test_precision_of_normalisation(self, low):
        torch.manual_seed(0)
        x = torch.randn(4, 64).bfloat16()
        exact = x.float() / (x.float().square().mean(1, keepdim=True).sqrt() + 1e-4)
        found = normalize(x, 1, low)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, exact.bfloat16()) is not low
        torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0)

    @pytest.mark.parametrize("side", [None, 1, 3])
    def test_convolution_keeps_variance_whatever_its_weights_are(self, side):
        torch.manual_seed(0)
        layer = MPConv(64, 128, side)
        with torch.no_grad():
            layer.weight.mul_(torch.rand(128, *(1,) * (layer.weight.dim() - 1)) * 7)
        x = torch.randn(64, 64) if side is None else torch.randn(4, 64, 16, 16)
        y = layer(x) if side is None else layer(x)[..., 1:-1, 1:-1]
        assert y.std().item() == pytest.approx(1, rel=0.03)

    def test_every_block_and_the_output_have_about_unit_variance_at_first(self):
        torch.manual_seed(0)
        options = {"image_size": 16, "model_channels": 64, "channel_mult": [1, 2, 2], "num_blocks": 2, "num_classes": 10}
        network = create_network({"which_model": "edm2_unet", **options, "attention_resolutions": [2, 4]})
        nn.init.ones_(network.out_gain)
        found = {}
        for name, block in [*network.enc.named_children(), *network.dec.named_children()]:
            block.register_forward_hook(lambda module, args, y, name=name: found.update({name: y.std().item()}))
        with torch.no_grad():
            y = network(torch.randn(8, 3, 16, 16), torch.randn(8), torch.arange(8))
        assert len(found) == 1 + 2 * 3 + 2 + (2 + 3 + 1 + 3 + 1 + 3) - 6  # six names are on both sides
        assert all(0.75 < each < 1.25 for each in found.values()), found
        assert 0.75 < y.std().item() < 1.3

    def test_it_starts_as_zero(self):
        torch.manual_seed(0)
        options, inputs = ARCHS.get("edm2_unet").tiny()
        assert not create_network({"which_model": "edm2_unet", **options})(*inputs).any()

    def test_no_class_is_the_zero_vector_and_needs_no_weights(self):
        network, (_, times, _) = tiny("edm2_unet")
        assert network.null_label == 3
        assert network.emb_label.weight.shape == (16, 3)
        null = torch.full((2,), network.null_label)
        expected = mp_silu(mp_sum(network.emb_noise(network.emb_fourier(times)), torch.zeros(2, 16)))
        torch.testing.assert_close(network.embed(times, null), expected)
        one_hot = torch.eye(3)[[2, 0]] * math.sqrt(3)
        told = network.emb_label(one_hot)
        expected = mp_silu(mp_sum(network.emb_noise(network.emb_fourier(times)), told))
        torch.testing.assert_close(network.embed(times, torch.tensor([2, 0])), expected)


class TestForcedNormalisation:
    """Weights are written in a forward pass: optimiser, averages, micro-batches and resumption must not notice."""

    @staticmethod
    def step(network: nn.Module, optimizer: torch.optim.Optimizer, number: int, cuts: int = 1) -> None:
        generator = torch.Generator().manual_seed(number)
        x, times = torch.randn(4, 3, 8, 8, generator=generator), torch.randn(4, generator=generator)
        y = torch.randint(4, (4,), generator=generator)
        optimizer.zero_grad()
        for part in range(cuts):
            cut = slice(part * 4 // cuts, (part + 1) * 4 // cuts)
            ((network(x[cut], times[cut], y[cut]) - x[cut]).square().mean() / cuts).backward()
        optimizer.step()

    @staticmethod
    def magnitudes(network: nn.Module) -> Tensor:
        weights = [module.weight.flatten(1) for module in network.modules() if isinstance(module, MPConv)]
        return torch.cat([weight.square().mean(1).sqrt() for weight in weights])

    @pytest.mark.parametrize("fused", [False, True])
    def test_weights_keep_their_norm(self, fused):
        network, inputs = tiny("edm2_unet")
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1, fused=fused)
        for number in range(3):
            self.step(network, optimizer, number)
        assert (self.magnitudes(network) - 1).abs().max() > 0.01, "the optimiser is expected to change norms"
        network(*inputs)
        torch.testing.assert_close(self.magnitudes(network), torch.ones(len(self.magnitudes(network))), rtol=2e-4, atol=0)

    @pytest.mark.parametrize("how", ["eval", "no_grad"])
    def test_nothing_is_written_where_nothing_is_trained(self, how):
        network, inputs = tiny("edm2_unet")
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1.5)
        before = copy.deepcopy(network.state_dict())
        if how == "eval":
            network.eval()(*inputs)
        else:
            with torch.no_grad():
                network(*inputs)
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())

    def test_writing_changes_no_prediction(self):
        network, inputs = tiny("edm2_unet")
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, MPConv):
                    module.weight.mul_(3.0)
        before = network.eval()(*inputs)
        torch.testing.assert_close(network.train()(*inputs), before, rtol=1e-3, atol=1e-4)

    def test_the_second_time_changes_not_a_bit(self):
        network, inputs = tiny("edm2_unet")
        with torch.no_grad():
            for weight in network.parameters():
                weight.mul_(1 + torch.rand(weight.shape))
        before = copy.deepcopy(network.state_dict())
        network(*inputs)
        once = copy.deepcopy(network.state_dict())
        network(*inputs)
        assert any(not torch.equal(before[key], value) for key, value in once.items())
        assert all(torch.equal(once[key], value) for key, value in network.state_dict().items())

    def test_two_passes_before_one_backward(self):
        found = []
        for passes in (1, 2):
            network, inputs = tiny("edm2_unet")
            losses = [network(*inputs).square().mean() for _ in range(passes)]
            torch.stack(losses).mean().backward()
            found.append([weight.grad for weight in network.parameters()])
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)

    def test_micro_batches(self):
        whole, _ = tiny("edm2_unet")
        cut = copy.deepcopy(whole)
        self.step(whole, torch.optim.SGD(whole.parameters(), lr=0.1), 0)
        self.step(cut, torch.optim.SGD(cut.parameters(), lr=0.1), 0, cuts=2)
        for one, two in zip(whole.parameters(), cut.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("fused", [False, True])  # which counts versions of weights, or does not
    def test_resuming_is_not_noticed(self, fused):
        straight, inputs = tiny("edm2_unet")
        optimizer = torch.optim.Adam(straight.parameters(), lr=0.01, fused=fused)
        for number in range(2):
            self.step(straight, optimizer, number)
        resumed, _ = tiny("edm2_unet")
        resumed.load_state_dict(straight.state_dict())
        other = torch.optim.Adam(resumed.parameters(), lr=0.01, fused=fused)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        straight.eval()(*inputs)  # a validation in between
        straight.train()
        for number in range(2, 4):
            self.step(straight, optimizer, number)
            self.step(resumed, other, number)
        for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(one, two)

    def test_a_copy_of_the_network_is_held_too(self):
        network, inputs = tiny("edm2_unet")
        network(*inputs)
        clone = copy.deepcopy(network)
        with torch.no_grad():
            for module in clone.modules():
                if isinstance(module, MPConv):
                    module.weight.mul_(2.0)
        clone(*inputs)
        torch.testing.assert_close(self.magnitudes(clone), torch.ones(len(self.magnitudes(clone))), rtol=2e-4, atol=0)

    def test_averages_are_of_what_the_optimiser_made(self):
        network, _ = tiny("edm2_unet")
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        ema = ModelEma(network, rate=0.5)
        expected = {key: value.clone() for key, value in network.state_dict().items()}
        for number in range(3):
            self.step(network, optimizer, number)
            ema.update(number + 1)
            expected = {key: value.lerp(network.state_dict()[key], 0.5) for key, value in expected.items()}
        for key, value in ema.state_dict().items():
            if key in expected:
                torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)

    def test_training_with_its_process(self):
        network, _ = tiny("edm2_unet", num_classes=None)
        process = create_process({"type": "edm"})
        injector = create_injector(
            {"type": "diffusion", "in": "hq", "out": "error", "generator": "net", "prediction": "edm"}
            | {"process": {"type": "edm"}, "times": {"type": "log_normal"}}
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        torch.manual_seed(0)
        hq = torch.randn(1, 3, 8, 8).expand(16, -1, -1, -1) * process.sigma_data
        losses = []
        for step in range(60):
            context = Context({"net": network}, trained=["net"], positions=range(16 * step, 16 * step + 16))
            loss = injector({"hq": hq}, context)["error"].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


class TestDiT:
    def test_it_starts_as_zero_and_its_blocks_as_the_identity(self):
        torch.manual_seed(0)
        options, inputs = ARCHS.get("dit").tiny()
        network = create_network({"which_model": "dit", **options})
        assert not network(*inputs).any()
        tokens = torch.randn(2, 6, 16)
        assert all(torch.equal(block(tokens, torch.randn(2, 16)), tokens) for block in network.blocks)

    def test_positions(self):
        found = sine_positions(2, 3, 8)
        expected = torch.tensor(
            [
                [f(at / 100**k) for at in (column, row) for f in (math.sin, math.cos) for k in range(2)]
                for row in range(2)
                for column in range(3)
            ]
        )
        torch.testing.assert_close(found, expected)

    def test_its_positions_are_kept_for_others_and_not_read(self):
        network, inputs = tiny("dit")
        larger, _ = tiny("dit", image_size=12)
        assert network.pos_embed.shape == (1, 16, 16)
        assert torch.equal(network._positions(4, 6)[0].view(4, 6, 16)[:, :4], network.pos_embed[0].view(4, 4, 16))
        assert larger.pos_embed.shape == (1, 36, 16)
        larger.load_state_dict(network.state_dict() | {"pos_embed": larger.pos_embed})
        assert torch.equal(larger(*inputs), network(*inputs))

    @pytest.mark.parametrize("options", [{"mlp": "swiglu"}, {"norm": "rms"}, {"qk_norm": True}])
    def test_options_change_the_function(self, options):
        network, inputs = tiny("dit", **options)
        plain, _ = tiny("dit")
        assert network(*inputs).shape == plain(*inputs).shape
        assert not torch.allclose(network(*inputs), plain(*inputs))

    def test_a_gated_mlp_has_about_as_many_weights(self):
        with torch.device("meta"):
            sizes = [
                sum(weight.numel() for weight in create_network({"which_model": "dit", "mlp": mlp}).parameters())
                for mlp in ("gelu", "swiglu")
            ]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.001)

    def test_patches_go_back_where_they_came_from(self):
        network, (x, times, y) = tiny("dit", out_channels=3)
        x.requires_grad_()
        network.blocks = nn.ModuleList()  # without attention a patch of the output depends on its own alone
        network(x, times, y)[0, 1, 2:4, 6:8].sum().backward()
        touched = x.grad[0].abs().sum(0) > 0
        assert touched[2:4, 6:8].all()
        assert touched.sum() == 4

    @pytest.mark.parametrize("kind", ["layer", "rms"])
    def test_normalisation(self, kind):
        torch.manual_seed(0)
        x = torch.randn(2, 3, 8)
        centred = x - x.mean(2, keepdim=True) if kind == "layer" else x
        expected = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(TokenNorm(8, kind)(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert TokenNorm(8, kind)(x).dtype == torch.float32
            assert TokenNorm(8, kind, low_precision=True)(x).dtype == torch.bfloat16


class TestCrossAttention:
    def test_is_its_formula(self):
        torch.manual_seed(0)
        layer = CrossAttention(8, heads=2, context_channels=5).double()
        x, context = torch.randn(1, 3, 8).double(), torch.randn(1, 4, 5).double()
        q, k, v = (each[0].view(-1, 2, 4) for each in (layer.to_q(x), layer.to_k(context), layer.to_v(context)))
        seen = [(q[:, h] @ k[:, h].t() / 2).softmax(1) @ v[:, h] for h in range(2)]
        expected = layer.to_out(torch.cat(seen, dim=1)[None])
        torch.testing.assert_close(layer(x, context), expected, rtol=1e-10, atol=1e-10)

    def test_what_is_masked_is_not_seen(self):
        network, (x, times, context, mask, y) = tiny("cross_attention_unet")
        changed = torch.where(mask[..., None], context, context + 100)
        torch.testing.assert_close(network(x, times, changed, mask, y), network(x, times, context, mask, y))
        shorter = network(x[:1], times[:1], context[:1, :2], None, y[:1])
        torch.testing.assert_close(network(x, times, context, mask, y)[:1], shorter, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(network(x, times, changed, None, y), network(x, times, context, None, y))
        numbers = mask.to(torch.int64)
        assert torch.equal(network(x, times, context, numbers, y), network(x, times, context, mask, y))

    def test_a_sample_without_any_vector(self):
        network, (x, times, context, mask, y) = tiny("cross_attention_unet")
        none = torch.zeros_like(mask)
        context.requires_grad_()
        result = network(x, times, context, none, y)
        result.square().mean().backward()
        assert result.isfinite().all()
        assert not context.grad.any()
        assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)

    def test_a_context_of_other_channels(self):
        network, (x, times, context, *_) = tiny("cross_attention_unet", num_classes=None)
        with pytest.raises(ValueError, match=r"context must be \(B, S, 6\) \(context_channels\), got \(2, 3, 5\)"):
            network(x, times, context[..., :5])

    def test_names_and_prefix_of_published_weights(self):
        with torch.device("meta"):
            own = create_network({"which_model": "cross_attention_unet"}).state_dict()
        shapes = {
            "time_embed.0.weight": (1280, 320), "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
            "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (320, 320),
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
            "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
            "middle_block.1.transformer_blocks.0.ff.net.2.bias": (1280,),
            "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias": (320,), "out.2.weight": (4, 320, 3, 3),
        }  # fmt: skip
        assert {key: tuple(own[key].shape) for key in shapes} == shapes
        prefixed = {f"model.diffusion_model.{key}": value for key, value in own.items()}
        assert list(ARCHS.get("cross_attention_unet").rename_state_dict(prefixed)) == list(own)


class TestAutoencoders:
    def test_latents_are_drawn_in_training_and_modes_otherwise(self):
        network, (x, noise) = tiny("autoencoder_kl")
        mean, log_variance = network.encode(x)
        torch.testing.assert_close(network(x, noise)[0], network.decode(mean + (log_variance / 2).exp() * noise))
        torch.manual_seed(0)
        drawn = network(x)[0]
        assert not torch.allclose(drawn, network(x)[0])
        torch.testing.assert_close(network.eval()(x)[0], network.decode(mean))

    def test_scaled_latents(self):
        network, (x, noise) = tiny("autoencoder_kl", scale_factor=0.5)
        mean, log_variance = network.encode(x)
        torch.testing.assert_close(network.latents(x), mean / 2)
        torch.testing.assert_close(network.latents(x, noise), (mean + (log_variance / 2).exp() * noise) / 2)
        torch.testing.assert_close(network.pictures(network.latents(x)), network.eval()(x)[0])

    def test_variances_are_kept_within_bounds(self):
        network, (x, noise) = tiny("autoencoder_kl")
        nn.init.constant_(network.quant_conv.bias, 1000.0)
        assert network(x, noise)[2].max() == 20

    def test_training_through_the_injector(self):
        network, (x, _) = tiny("autoencoder_kl")
        context = Context({"vae": network}, trained=["vae"], positions=range(2))
        injector = create_injector({"type": "generator", "generator": "vae", "in": "hq", "out": ["gen", "mean", "spread"]})
        state = {"hq": x} | injector({"hq": x}, context)
        loss = create_loss({"type": "gaussian_kl", "mean": "mean", "log_variance": "spread"})(state, context)
        mean, spread = state["mean"], state["spread"]
        expected = -torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, (spread / 2).exp()), torch.distributions.Normal(0.0, 1.0)
        ).sum()
        assert loss.item() == pytest.approx(-expected.item() / 2, rel=1e-5)
        with pytest.raises(ValueError, match="must have the same shape"):
            create_loss({"type": "gaussian_kl", "mean": "mean", "log_variance": "hq"})(state, context)

    def test_data_of_a_diffusion_of_latents(self):
        network, (x, _) = tiny("autoencoder_kl")
        context = Context({"vae": network}, trained=[], positions=range(2))
        common = {"type": "generator", "generator": "vae", "grad": False}
        latents = create_injector(common | {"method": "latents", "in": "hq", "out": "z"})({"hq": x}, context)
        pictures = create_injector(common | {"method": "pictures", "in": "z", "out": "gen"})(latents, context)
        assert not latents["z"].requires_grad
        torch.testing.assert_close(pictures["gen"], network.eval()(x)[0])

    @pytest.mark.parametrize("name", ["autoencoder_kl", "autoencoder_vq"])
    def test_names_and_prefix_of_published_weights(self, name):
        with torch.device("meta"):
            own = create_network({"which_model": name}).state_dict()
        keys = [
            "encoder.down.1.block.0.nin_shortcut.weight",
            "encoder.down.0.downsample.conv.bias",
            "encoder.mid.attn_1.q.weight",
        ]
        keys += ["decoder.up.2.block.2.conv2.weight", "decoder.up.1.upsample.conv.weight", "decoder.norm_out.bias"]
        assert set(keys) <= own.keys()
        assert not any(key.startswith(("decoder.up.0.upsample", "encoder.down.3.downsample")) for key in own)
        prefixed = {f"first_stage_model.{key}": value for key, value in own.items()}
        assert list(ARCHS.get(name).rename_state_dict(prefixed)) == list(own)


class TestVectorQuantizer:
    def test_nearest_is_the_nearest(self):
        torch.manual_seed(0)
        vectors, codes = torch.randn(50, 3), torch.randn(7, 3)
        assert torch.equal(nearest(vectors, codes), torch.cdist(vectors, codes).argmin(1))

    def test_losses_and_where_gradients_go(self):
        torch.manual_seed(0)
        layer = VectorQuantizer(6, 3, commitment=0.5)
        nn.init.normal_(layer.embedding.weight)
        z = torch.randn(2, 3, 2, 2, requires_grad=True)
        result = layer(z)
        codes = layer.lookup(result.indices)
        torch.testing.assert_close(result.vectors, codes)
        distance = (codes - z).square().mean()
        assert result.loss.item() == pytest.approx(1.5 * distance.item(), rel=1e-5)
        shares = torch.bincount(result.indices.flatten(), minlength=6) / 8
        expected = math.exp(-sum(p * math.log(p) for p in shares.tolist() if p))
        assert result.perplexity.item() == pytest.approx(expected, rel=1e-5)
        (through,) = torch.autograd.grad(result.vectors.sum(), z, retain_graph=True)
        assert torch.equal(through, torch.ones_like(z))
        of_z, of_codes = torch.autograd.grad(result.loss, (z, layer.embedding.weight))
        torch.testing.assert_close(of_z, 0.5 * 2 * (z - codes).detach() / z.numel())
        by_hand = torch.zeros(6, 3).index_add_(0, result.indices.flatten(), 2 * (codes - z).permute(0, 2, 3, 1).reshape(-1, 3))
        torch.testing.assert_close(of_codes, by_hand.detach() / z.numel())

    def test_codes_that_follow_averages(self):
        torch.manual_seed(0)
        layer = VectorQuantizer(2, 1, decay=0.5)
        layer.embedding.weight.copy_(torch.tensor([[0.0], [10.0]]))
        layer.embedding.sums.copy_(layer.embedding.weight)
        z = torch.tensor([1.0, 2.0, 3.0, 12.0]).view(1, 1, 2, 2)
        layer(z)
        # counts (1, 1) -> (2, 1), sums (0, 10) -> (3, 11)
        torch.testing.assert_close(layer.embedding.weight, torch.tensor([[1.5], [11.0]]), rtol=1e-4, atol=0)
        assert not list(layer.parameters())
        kept = copy.deepcopy(layer.state_dict())
        layer.eval()(z)
        with torch.no_grad():
            layer.train()(z)
        assert all(torch.equal(kept[key], value) for key, value in layer.state_dict().items())

    @pytest.mark.parametrize("decay", [None, 0.9])
    def test_codes_find_clusters(self, decay):
        torch.manual_seed(0)
        centres = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])
        layer = VectorQuantizer(3, 2, decay=decay)
        with torch.no_grad():
            for kept in (layer.embedding.weight, *layer.embedding.buffers()):
                if kept.dim() == 2:
                    kept.copy_(centres / 4)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1) if decay is None else None
        for _ in range(100):
            z = centres[torch.randint(3, (64,))] + 0.05 * torch.randn(64, 2)
            loss = layer(z[..., None, None]).loss
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        torch.testing.assert_close(layer.embedding.weight.detach(), centres, rtol=0, atol=0.05)

    def test_pictures_of_indices(self):
        network, (x,) = tiny("autoencoder_vq")
        indices = network.indices(x)
        assert indices.shape == (2, 4, 6)
        torch.testing.assert_close(network.from_indices(indices), network(x)[0])
        torch.testing.assert_close(network.pictures(network.latents(x)), network(x)[0])


class TestLowResolutionFeatures:
    def test_bicubic_enlargement(self):
        network, (x, times, low_res, y) = tiny("guided_superres", conditioning="bicubic")
        plain, _ = tiny("guided_superres")
        plain.load_state_dict(network.state_dict())
        enlarged = F.interpolate(low_res, x.shape[-2:], mode="bicubic", antialias=True)
        torch.testing.assert_close(network(x, times, low_res, y), plain(x, times, enlarged, y), rtol=1e-4, atol=1e-5)

    def test_features_of_a_trunk_are_added_to_the_first(self):
        options = {"conditioning": "rrdb", "rrdb_channels": 4, "rrdb_blocks": 1, "rrdb_growth": 2}
        network, (x, times, low_res, y) = tiny("guided_superres", **options)
        assert network.input_blocks[0][0].in_channels == 3
        seen = []
        network.input_blocks[1].register_forward_hook(lambda module, args, output: seen.append(args[0]))
        network(x, times, low_res, y)
        features = conv(network.low_res_encoder(low_res), network.low_res_proj)
        expected = conv(x, network.input_blocks[0][0]) + F.interpolate(features, x.shape[-2:], mode="bilinear")
        torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)

    def test_recomputing_the_trunk(self):
        options = {"conditioning": "rrdb", "rrdb_channels": 4, "rrdb_blocks": 2, "rrdb_growth": 2}
        network, inputs = tiny("guided_superres", **options)
        calls: list[int] = []
        network.low_res_encoder.body[0].register_forward_pre_hook(lambda module, args: calls.append(1))
        found = []
        for checkpointing in (False, True):
            network.checkpointing = checkpointing
            network.zero_grad()
            network(*inputs).square().mean().backward()
            found.append({key: weight.grad.clone() for key, weight in network.named_parameters()})
        assert len(calls) == 3
        for key, gradient in found[0].items():
            torch.testing.assert_close(found[1][key], gradient, rtol=1e-5, atol=1e-7, msg=key)
