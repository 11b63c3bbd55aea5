"""What every registered network must do, at the tiny size that it offers; then what only some do."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.errors import ConfigurationError
from dlas.explain.catalogue import shipped
from dlas.registry import ARCHS

NAMES = list(shipped(ARCHS))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(name: str, **more: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    options, inputs = ARCHS.get(name).tiny()
    return create_network({"which_model": name, **options, **more}), inputs


def tensors_in(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        for value in result.values():
            yield from tensors_in(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from tensors_in(value)


def loss_of(result: Any) -> Tensor:
    """A scalar on which every floating-point output has a say."""
    losses = [tensor.float().square().mean() for tensor in tensors_in(result) if tensor.requires_grad]
    assert losses, "no output depends on the weights"
    return torch.stack(losses).sum()


def gradients(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    network.zero_grad()
    torch.manual_seed(1)
    loss_of(network(*inputs)).backward()
    return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", NAMES)
def test_builds_and_trains(name: str) -> None:
    network, inputs = tiny(name)
    assert getattr(network, "needs_first_batch", False) == any(hasattr(each, "awaits_batch") for each in network.modules())
    found = gradients(network, inputs)
    assert found.keys() == {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name: str, tmp_path: Path) -> None:
    network, inputs = tiny(name)
    other, _ = tiny(name)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "n.safetensors")
    other.load_state_dict(load_file(tmp_path / "n.safetensors"))
    for one, two in zip(tensors_in(network.eval()(*inputs)), tensors_in(other.eval()(*inputs)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_trains_in_bfloat16(name: str) -> None:
    network, inputs = tiny(name)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(*inputs)
    loss_of(result).backward()
    assert all(tensor.isfinite().all() for tensor in tensors_in(result))
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    network, inputs = tiny(name)
    if not hasattr(network, "checkpointing"):
        pytest.skip(f"{name} recomputes nothing")
    kept = copy.deepcopy(network.state_dict())
    plain = gradients(network, inputs)
    calls: list[str] = []
    for module in network.modules():
        module.register_forward_pre_hook(lambda module, inputs: calls.append(type(module).__name__))
    gradients(network, inputs)
    plain_calls = len(calls)
    calls.clear()
    network.load_state_dict(kept)  # codebooks move in each forward
    network.checkpointing = True
    recomputed = gradients(network, inputs)
    assert len(calls) > plain_calls, "checkpointing is on, but nothing was computed a second time"
    assert plain.keys() == recomputed.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-6, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_renaming_leaves_present_names_alone(name: str) -> None:
    network, _ = tiny(name)
    if not hasattr(network, "rename_state_dict"):
        pytest.skip(f"{name} has no older names")
    own = network.state_dict()
    assert list(network.rename_state_dict(own)) == list(own)


def test_importing_the_package_imports_no_network() -> None:
    code = "import sys, dlas.archs; print([m for m in sys.modules if m == 'torch' or m.startswith('dlas.archs.')])"
    folder = Path(__file__).resolve().parents[1] / "codes"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "checkpointing", "options"),
    [
        ("RRDBNet", False, {"additive_mode": "bicubic"}),
        ("RRDBNet", True, {"nb": 3, "blocks_per_checkpoint": 2}),
        ("RRDBNetBypass", False, {}),
        ("discriminator_vgg_128_gn", False, {}),
        ("discriminator_vgg_128_gn", True, {}),
        ("SRVGGNetCompact", False, {}),
        ("MSRResNet", True, {}),
        ("EDSR", False, {}),
        ("RCAN", True, {}),
        ("SPAN", False, {}),
        ("RealPLKSR", False, {"upsampler": "dysample"}),
        ("PLKSR", True, {}),
        ("SwinIR", False, {"depths": [2], "num_heads": [2], "drop_path_rate": 0.0}),
        ("HAT", False, {"depths": [2], "num_heads": [2]}),
        ("DAT", False, {"depth": [3], "num_heads": [2], "drop_path_rate": 0.0}),
        ("OmniSR", False, {"res_num": 1}),
        ("UNetDiscriminatorSN", False, {}),
        ("PatchGANDiscriminatorSN", False, {}),
        ("stylegan2_rosinality_disc", False, {}),
        ("noise_level_variance", False, {}),
        ("guided_unet", False, {}),
        ("guided_unet", True, {"dropout": 0.1, "low_precision_norm": True}),
        ("guided_superres", False, {}),
        ("guided_classifier", False, {}),
        ("unet_diffusion", True, {}),
        ("unet_diffusion_latent_guide", False, {}),
        ("rrdb_diffusion", True, {}),
        ("guided_superres", True, {"conditioning": "rrdb", "rrdb_channels": 8, "rrdb_blocks": 1, "rrdb_growth": 4}),
        ("edm2_unet", True, {"dropout": 0.1, "low_precision_norm": True}),
        ("dit", True, {"mlp": "swiglu", "norm": "rms", "qk_norm": True, "dropout": 0.1, "low_precision_norm": True}),
        ("cross_attention_unet", True, {"dropout": 0.1, "low_precision_norm": True}),
        ("autoencoder_kl", True, {"low_precision_norm": True}),
        ("autoencoder_vq", True, {"codebook_decay": 0.9}),
        ("vqvae", True, {}),
        ("text_embedding", False, {}),
    ],
)
def test_compiles_without_a_break(name: str, checkpointing: bool, options: dict[str, Any]) -> None:
    network, inputs = tiny(name, **options)
    network.checkpointing = checkpointing
    compiled = copy.deepcopy(network)
    expected = gradients(network, inputs)
    loss_of(torch.compile(compiled, backend="aot_eager", fullgraph=True)(*inputs)).backward()
    found = {key: weight.grad for key, weight in compiled.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-6, msg=key)


class TestCreateNetwork:
    @pytest.mark.parametrize("key", ["which_model", "which_model_G", "which_model_D"])
    def test_name_keys(self, key: str) -> None:
        assert type(create_network({key: "RRDBNet", "nf": 8, "nb": 1, "gc": 4})).__name__ == "RRDBNet"

    @pytest.mark.parametrize("nesting", ["kwargs", "args"])
    def test_nested_options(self, nesting: str) -> None:
        network = create_network({"which_model_G": "RRDBNet", "nb": 1, nesting: {"nf": 8, "gc": 4}})
        assert network.conv_first.weight.shape[0] == 8

    def test_options_of_the_trainer_are_passed_over(self) -> None:
        of_trainer = {"type": "generator", "trainable": False, "after": 100, "device": "cpu"}
        create_network({"which_model_G": "RRDBNet", "nf": 8, "nb": 1, "gc": 4, **of_trainer})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"nf": 8}, "exactly one of which_model, which_model_G, which_model_D .* none of them is given"),
            ({"which_model_G": "RRDBNet", "which_model": "RRDBNet"}, "which_model and which_model_G are given"),
            ({"which_model_G": "RRDBnet2"}, r"networks\.gen: no network is called 'RRDBnet2'; did you mean 'RRDBNet'"),
            ({"which_model_G": "RRDBNet", "nbb": 1}, r"networks\.gen: .*has no option 'nbb'; did you mean 'nb'"),
            ({"which_model_G": "RRDBNet", "nb": 1, "kwargs": {"nb": 2}}, "'nb' is given twice"),
            ({"which_model_G": "RRDBNet", "scale": 3}, "scale must be one of 1, 2, 4, 8, got 3"),
        ],
    )
    def test_mistakes(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            create_network(options, name="gen")


class TestRRDBNet:
    @pytest.mark.parametrize("scale", [1, 2, 4, 8])
    @pytest.mark.parametrize("pixel_unshuffle", [True, False])
    def test_output_size(self, scale: int, pixel_unshuffle: bool) -> None:
        network, (x,) = tiny("RRDBNet", scale=scale, pixel_unshuffle=pixel_unshuffle)
        assert network(x).shape == (*x.shape[:2], x.shape[2] * scale, x.shape[3] * scale)

    def test_size_that_cannot_be_unshuffled(self) -> None:
        network, _ = tiny("RRDBNet", scale=2)
        with pytest.raises(ValueError, match="9x8 pixels does not fit: height and width must be multiples of 2"):
            network(torch.rand(1, 3, 9, 8))

    @pytest.mark.parametrize("name", ["RRDBNet", "RRDBNetBypass"])
    @pytest.mark.parametrize("scale", [2, 4])
    @pytest.mark.parametrize("bfloat16", [False, True])
    def test_zero_initialised_network_is_bicubic_enlargement(self, name: str, scale: int, bfloat16: bool) -> None:
        network, (x,) = tiny(name, scale=scale, additive_mode="bicubic", zero_init_last=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = network(x)
        assert y.dtype == torch.float32
        assert torch.equal(y, F.interpolate(x, scale_factor=float(scale), mode="bicubic", antialias=True))

    def test_bicubic_enlargement_has_the_kernel_of_the_baseline(self) -> None:
        """Keys' cubic with a = -0.5, at the offsets of the 1st and 2nd of two output pixels between four input pixels."""

        def keys(t: float, a: float = -0.5) -> float:
            t = abs(t)
            return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4)

        network, _ = tiny("RRDBNet", scale=2, additive_mode="bicubic", zero_init_last=True)
        row = torch.rand(8)
        y = network(row.expand(1, 3, 8, 8))[0, 0, 8]
        for output, (first, offset) in {7: (2, 1.25), 8: (2, 1.75)}.items():  # centres at input 3.25 and 3.75
            expected = sum(keys(offset - k) * row[first + k].item() for k in range(4))
            assert y[output].item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("bfloat16", [False, True])
    def test_enforced_addition_gives_each_block_the_mean_of_the_input(self, bfloat16: bool) -> None:
        """To float32's precision in both cases: only the network itself may be rounded to bfloat16."""
        network, (x,) = tiny("RRDBNet", scale=4, additive_mode="additive_enforced")
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = network(x)
        bilinear = F.interpolate(x, scale_factor=4.0, mode="bilinear")
        torch.testing.assert_close(F.avg_pool2d(y, 4), F.avg_pool2d(bilinear, 4), rtol=1e-6, atol=1e-6)

    def test_enforced_addition_needs_whole_blocks(self) -> None:
        with pytest.raises(ValueError, match=r"initial_stride 3 gives 1\.33; initial_stride must divide scale"):
            ARCHS.get("RRDBNet")(nf=8, nb=1, gc=4, initial_stride=3, additive_mode="additive_enforced")

    def test_addition_needs_equal_channels(self) -> None:
        with pytest.raises(ValueError, match=r"in_nc \(1\) and out_nc \(3\) must be equal"):
            ARCHS.get("RRDBNet")(nf=8, nb=1, gc=4, in_nc=1, additive_mode="bicubic")

    def test_long_skips_differ_by_what_the_trunk_adds(self) -> None:
        first, (x,) = tiny("RRDBNet", output_mode="features_only")
        trunk, _ = tiny("RRDBNet", output_mode="features_only", long_skip="trunk")
        trunk.load_state_dict(first.state_dict())
        features = first.conv_first(x)
        torch.testing.assert_close(trunk(x) - first(x), first.body(features) - features, rtol=1e-4, atol=1e-5)

    def test_output_modes_agree(self) -> None:
        network, (x,) = tiny("RRDBNet")
        results = {}
        for mode in ("hq_only", "hq+features", "features_only"):
            network.output_mode = mode
            results[mode] = network(x)
        picture, features = results["hq+features"]
        assert torch.equal(picture, results["hq_only"])
        assert torch.equal(features, results["features_only"])

    @pytest.mark.parametrize(("blocks", "segments"), [(1, 5), (2, 3), (5, 1), (9, 1)])
    def test_blocks_per_checkpoint(self, blocks: int, segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
        import dlas.archs.rrdb as rrdb

        network, (x,) = tiny("RRDBNet", nb=5, blocks_per_checkpoint=blocks)
        plain = gradients(network, (x,))
        calls = []

        def counting(*args: Any, **kwargs: Any) -> Tensor:
            calls.append(args)
            return checkpoint(*args, **kwargs)

        checkpoint = rrdb.checkpoint
        monkeypatch.setattr(rrdb, "checkpoint", counting)
        network.checkpointing = True
        recomputed = gradients(network, (x,))
        assert len(calls) == segments
        assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
        network.eval()(x)
        with torch.no_grad():
            network.train()(x)
        assert len(calls) == segments, "nothing is to be recomputed where nothing is differentiated"

    def test_dense_blocks_start_small_and_other_layers_as_usual(self) -> None:
        network = ARCHS.get("RRDBNet")(nf=64, nb=1, gc=32)
        conv = network.body[0].rdb2.conv3
        usual = (2 / (conv.in_channels * 9)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(0.1 * usual, rel=0.02)
        assert not conv.bias.any()
        # torch's own: uniform within 1 / sqrt(fan_in)
        assert network.conv_hr.weight.abs().max().item() == pytest.approx((64 * 9) ** -0.5, rel=0.01)

    def test_published_size(self) -> None:
        with torch.device("meta"):
            network = create_network({"which_model_G": "RRDBNet"})
        assert sum(weight.numel() for weight in network.parameters()) == 16_697_987

    @pytest.mark.parametrize("layout", ["channels_last", "contiguous_format"])
    def test_memory_layout_is_kept_and_changes_no_number(self, layout: str) -> None:
        network, (x,) = tiny("RRDBNet", additive_mode="bicubic")
        expected = network(x)
        memory_format = getattr(torch, layout)
        y = copy.deepcopy(network).to(memory_format=memory_format)(x.contiguous(memory_format=memory_format))
        assert y.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("scale", [4, 8])
    def test_names_of_the_first_release(self, scale: int) -> None:
        """Layers numbered in one sequence: conv, trunk, (enlarge, conv, activation) per factor of 2, conv, activation, conv."""
        network, _ = tiny("RRDBNet", scale=scale)
        enlargements = {4: 2, 8: 3}[scale]
        numbers = {"conv_first": 0, "conv_hr": 2 + 3 * enlargements, "conv_last": 4 + 3 * enlargements}
        numbers |= {f"conv_up{k}": 3 * k for k in range(1, enlargements + 1)}
        old = {}
        for key, value in network.state_dict().items():
            layer, _, kind = key.rpartition(".")
            if layer in numbers:
                old[f"model.{numbers[layer]}.{kind}"] = value
            elif layer == "conv_body":
                old[f"model.1.sub.{len(network.body)}.{kind}"] = value
            else:
                old[f"model.1.sub.{layer.removeprefix('body.').replace('rdb', 'RDB')}.0.{kind}"] = value
        renamed = network.rename_state_dict(old)
        assert list(renamed) == list(network.state_dict())
        assert all(renamed[key] is value for key, value in zip(renamed, old.values(), strict=True))


class TestVGGDiscriminators:
    @pytest.mark.parametrize("name", ["discriminator_vgg_128", "discriminator_vgg_128_gn", "VGGStyleDiscriminator"])
    def test_pictures_of_another_size(self, name: str) -> None:
        network, (x,) = tiny(name)
        size = x.shape[-1]
        with pytest.raises(ValueError, match=f"built for {size}x{size} pictures and got {size}x{size + 32}"):
            network(F.pad(x, (0, 32)))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_size": 100}, "image_size must be a multiple of 32"),
            ({"image_size": 96, "extra_conv": True}, "image_size must be a multiple of 64"),
            ({"nf": 12}, "nf must be a multiple of 8"),
        ],
    )
    def test_sizes_that_cannot_be(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ARCHS.get("discriminator_vgg_128_gn")(**{"nf": 8, **options})

    def test_size_that_basicsr_does_not_have(self) -> None:
        with pytest.raises(ValueError, match="input_size must be 128 or 256, got 96"):
            ARCHS.get("VGGStyleDiscriminator")(num_feat=4, input_size=96)

    def test_group_normalised_logit_is_the_pictures_own(self) -> None:
        network, (x,) = tiny("discriminator_vgg_128_gn")
        torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-5, atol=1e-6)

    def test_own_option_for_checkpointing(self) -> None:
        plain, inputs = tiny("discriminator_vgg_128_gn")
        recomputing, _ = tiny("discriminator_vgg_128_gn", do_checkpointing=True)
        recomputing.load_state_dict(plain.state_dict())
        calls: list[int] = []
        recomputing.conv0_0.register_forward_pre_hook(lambda module, inputs: calls.append(1))
        expected, found = gradients(plain, inputs), gradients(recomputing, inputs)
        assert len(calls) == 2
        assert all(torch.equal(expected[key], found[key]) for key in expected)

    def test_gradient_of_the_gradient(self) -> None:
        """Gradient penalties differentiate twice, through the activations that work in place too."""
        network, (x,) = tiny("discriminator_vgg_128_gn")
        network = network.double()
        x = x[:1].double().requires_grad_()

        def penalty(weight: Tensor) -> Tensor:
            logit = torch.func.functional_call(network, {"linear1.weight": weight}, (x,))
            (slope,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
            return slope.square().sum()

        weight = network.linear1.weight.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(penalty(weight), weight)
        direction = torch.randn_like(weight)
        step = 1e-6
        numeric = (penalty(weight + step * direction) - penalty(weight - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5)
