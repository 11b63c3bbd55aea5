"""Samples that frozen networks made ahead: `dlas data encode` and the data set `latents`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dlas.cli.main import main
from dlas.config import check
from dlas.context import Context
from dlas.data.base import Request, create_dataset
from dlas.data.latents.store import Writer, differences
from dlas.engine import encoding
from dlas.engine.encoders import fingerprint
from dlas.engine.encoding import encode_data_sets
from dlas.errors import ConfigurationError, DataError
from dlas.registry import ARCHS
from dlas.types import PositiveInt
from runs import batches, configure, rows, trainer


@ARCHS.register("ToyAutoencoder")
class ToyAutoencoder(nn.Module):
    """An eighth of a picture, and its way back."""

    def __init__(self, *, width: PositiveInt = 4) -> None:
        super().__init__()
        self.inward = nn.Conv2d(1, 2 * width, 4, 4)
        self.outward = nn.ConvTranspose2d(width, 1, 4, 4)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance."""
        mean, log_variance = self.inward(x).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """(B, width, h, w) -> (B, 1, 4 h, 4 w)."""
        return self.outward(latent)

    def forward(self, x: Tensor) -> Tensor:
        """There and back."""
        return self.decode(self.encode(x)[0])

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 1, 8, 8),)


@ARCHS.register("ToyLatentDenoiser")
class ToyLatentDenoiser(nn.Module):
    """Sees latents, their time and a text."""

    def __init__(self, *, width: PositiveInt = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(width + 1, width, 1)
        self.words = nn.Linear(8, width)

    def forward(self, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """(B, width, h, w), (B,), (B, S, 8) -> (B, width, h, w)."""
        time = (times / 1000).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[-2:])
        return self.body(torch.cat((x, time.to(x)), dim=1)) + self.words(context.mean(dim=1))[:, :, None, None]

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """For the tests over the registry."""
        return {}, (torch.rand(2, 4, 2, 2), torch.rand(2), torch.rand(2, 3, 8))


INJECTORS = """\
      encoded: {type: generator, generator: autoencoder, method: encode, in: hq, out: [latent, log_variance], grad: false}
      tokens: {type: tokenize, in: caption, out: tokens, length: 6, size: 64}
"""
FILE = """\
name: latents
datasets:
  train: DATA
networks:
  autoencoder: {which_model: ToyAutoencoder, trainable: false}
  text: {which_model: text_embedding, vocabulary_size: 64, length: 6, width: 8}
  denoiser: {which_model: ToyLatentDenoiser}
steps:
  denoiser:
    training: [denoiser, text]
    optimizer: adam
    optimizer_params: {lr: 1e-2}
    injectors:
ONLINE      context: {type: generator, generator: text, in: tokens, out: context}
      error: {type: diffusion, generator: denoiser, in: latent, out: error, process: {type: vp}, conditions: {context: context},
              drop_rate: 0.2, unconditional: {context: 0}}
    losses:
      error: {type: direct, key: error, weight: 1}
train: {niter: 6}
encode:
  injectors:
ENCODE  dtype: fp32
  part_size: 600
logger: {print_freq: 1, save_checkpoint_freq: 6, tensorboard: false}
"""
SOURCE = "{mode: digits, rgb_n1_to_1: true}"


def on_the_fly() -> str:
    """Encodes in every step."""
    data = SOURCE.replace("}", ", batch_size: 8}")
    text = FILE.replace("DATA", data).replace("ONLINE", INJECTORS)
    return text[: text.index("encode:")] + text[text.index("logger:") :]


def ahead(folder, keep="latent, tokens", source=SOURCE) -> str:
    """Trains on what was encoded before."""
    data = f"{{mode: latents, folder: {folder}/encoded, keep: [{keep}], source: {source}, batch_size: 8}}"
    return FILE.replace("DATA", data).replace("ONLINE", "").replace("ENCODE", INJECTORS.replace("      ", "    "))


@pytest.fixture
def weights(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    path = tmp_path / "autoencoder.safetensors"
    save_file(ToyAutoencoder().state_dict(), path)
    return f"path.pretrain.autoencoder={path}"


def encoded(tmp_path, weights, *overrides, text=None):
    return encode_data_sets(configure(tmp_path, text or ahead(tmp_path), weights, *overrides))


def read(tmp_path, phase="train", keep=("latent", "tokens")):
    options = {"mode": "latents", "folder": str(tmp_path / "encoded"), "keep": list(keep)}
    return create_dataset(options, phase=phase, name="train")


def test_training_from_latents_is_training_on_the_fly(tmp_path, weights):
    (result,) = encoded(tmp_path, weights)
    assert result.made == result.samples > 1000
    for name, text in (("fly", on_the_fly()), ("ahead", ahead(tmp_path))):
        trainer(tmp_path, text, weights, f"name={name}").run()
    fly, made = (rows(tmp_path / name, "train") for name in ("fly", "ahead"))
    losses = [[row["denoiser/error"] for row in each] for each in (fly, made)]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != pytest.approx(losses[0][1], rel=1e-5)


def test_half_precision_is_the_default_and_near(tmp_path, weights):
    encoded(tmp_path, weights, "encode.dtype=fp16", "datasets.train.keep=[latent, log_variance, tokens, label, caption]")
    data = read(tmp_path, keep=("latent", "tokens", "label", "caption"))
    sample = data[Request(5, 5, 0)]
    assert sample["latent"].dtype == torch.float32
    assert sample["label"].dtype == sample["tokens"].dtype == torch.int64
    assert sample["caption"].startswith("a handwritten ")
    run = trainer(tmp_path, on_the_fly(), weights)
    source = run.datasets["train"][Request(5, 5, 0)]
    expected = run.networks["autoencoder"].encode(source["hq"][None])[0][0]
    torch.testing.assert_close(sample["latent"], expected, rtol=1e-3, atol=1e-3)
    assert sample["label"] == source["label"]


def test_the_dry_run_knows_the_shapes_from_the_folder(tmp_path, weights):
    encoded(tmp_path, weights)
    spec = type(read(tmp_path)).sample_spec(
        "train", {"folder": str(tmp_path / "encoded"), "keep": ["latent", "tokens"], "source": None}
    )
    assert spec["latent"].shape == (4, 2, 2)
    assert spec["tokens"].dtype == torch.int64


def test_a_killed_encoding_goes_on_and_ends_alike(tmp_path, weights, monkeypatch):
    put, parts = Writer.put, []

    def dies(self, part, tensors, texts):
        parts.append(part)
        if parts == [0, 1]:
            raise KeyboardInterrupt
        put(self, part, tensors, texts)

    monkeypatch.setattr(Writer, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path, weights)
    with pytest.raises(DataError, match=r"is not complete \(1 parts are there\)"):
        read(tmp_path)
    (result,) = encoded(tmp_path, weights)
    assert parts == [0, 1, 1, 2]
    assert result.made == result.samples - 600
    first = [read(tmp_path)[Request(i, i, 0)]["latent"] for i in (0, 599, 600, result.samples - 1)]
    assert encoded(tmp_path, weights)[0].made == 0
    assert parts == [0, 1, 1, 2]
    encoded(tmp_path, weights, "datasets.train.folder=" + str(tmp_path / "whole"), "encode.part_size=5000")
    options = {"mode": "latents", "folder": str(tmp_path / "whole"), "keep": ["latent"]}
    whole = create_dataset(options, phase="train", name="train")
    for index, latent in zip((0, 599, 600, result.samples - 1), first, strict=True):
        torch.testing.assert_close(whole[Request(index, index, 0)]["latent"], latent)


def test_other_weights_options_and_data_are_refused(tmp_path, weights):
    encoded(tmp_path, weights)
    with pytest.raises(ConfigurationError, match=r"networks\.autoencoder\.weights was .* --overwrite"):
        encoded(tmp_path, "path.pretrain={}")
    with pytest.raises(ConfigurationError, match="dtype was fp32 and is bf16"):
        encoded(tmp_path, weights, "encode.dtype=bf16")
    with pytest.raises(ConfigurationError, match=r"the network 'autoencoder' with other weights \(.*data encode"):
        trainer(tmp_path, ahead(tmp_path), "path.pretrain={}").run()
    with pytest.raises(ConfigurationError, match=r"source\.rgb_n1_to_1 was true and is false"):
        trainer(tmp_path, ahead(tmp_path, source="{mode: digits, rgb_n1_to_1: false}"), weights)
    with pytest.raises(ConfigurationError, match="has no gen; it has: latent, tokens"):
        read(tmp_path, keep=["gen"])
    result = encode_data_sets(configure(tmp_path, ahead(tmp_path), "path.pretrain={}"), overwrite=True)[0]
    assert result.made == result.samples
    trainer(tmp_path, ahead(tmp_path), "path.pretrain={}", "seed=0").run()


def test_a_network_that_is_trained_does_not_read_its_own_past(tmp_path, weights):
    encoded(tmp_path, weights)
    text = (
        ahead(tmp_path)
        .replace("trainable: false", "trainable: true")
        .replace("[denoiser, text]", "[denoiser, text, autoencoder]")
    )
    text = text.replace(
        "    losses:",
        "      again: {type: generator, generator: autoencoder, method: decode, in: latent, out: hq}\n    losses:",
    )
    text = text.replace("weight: 1}", "weight: 1}\n      size: {type: direct, key: hq, weight: 1}")
    with pytest.raises(ConfigurationError, match="'autoencoder', which this run trains"):
        trainer(tmp_path, text, weights).run()


def test_files_that_are_not_its_own_are_left_alone(tmp_path, weights):
    (tmp_path / "encoded").mkdir()
    (tmp_path / "encoded/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="not made by this command"):
        encoded(tmp_path, weights)
    assert (tmp_path / "encoded/thesis.txt").read_text() == "years of work"


def test_views_are_drawn_in_training_and_the_first_in_evaluation(tmp_path, weights):
    encoded(tmp_path, weights, "encode.mirror=[hq]", "encode.copies=2")
    data, first = read(tmp_path), read(tmp_path, "val")
    assert data.store.views == 4
    seen = {tuple(data[Request(3, position, 0)]["latent"].flatten().tolist()) for position in range(40)}
    assert len(seen) == 2  # the digits have no random crops, so that both copies are alike
    assert data[Request(3, 7, 0)]["latent"].equal(data[Request(3, 7, 0)]["latent"])
    run = trainer(tmp_path, on_the_fly(), weights)
    image = run.datasets["train"][Request(3, 3, 0)]["hq"][None]
    expected = [run.networks["autoencoder"].encode(each)[0].flatten().tolist() for each in (image, image.flip(-1))]
    assert all(any(np.allclose(found, each, atol=1e-5) for found in seen) for each in expected)
    assert np.allclose(first[Request(3, 7, 0)]["latent"].flatten(), expected[0], atol=1e-5)


def test_workers_read_the_same(tmp_path, weights):
    encoded(tmp_path, weights)
    found = [batches(trainer(tmp_path, ahead(tmp_path), weights, f"datasets.train.n_workers={n}"), 3) for n in (0, 2)]
    for one, other in zip(*found, strict=True):
        assert one["latent"].equal(other["latent"])


def test_damaged_images_are_left_out_where_the_source_says_so(tmp_path, weights):
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"noise number {number}\n")
    (tmp_path / "2.png").write_bytes(b"no picture")
    source = f"{{mode: captioned_images, paths: {tmp_path}, target_size: 8, on_bad_file: skip}}"
    grey = "    grey: {type: channel_clip, in: hq, out: one, channel_low: 0, channel_high: 1}\n"
    text = ahead(tmp_path, "latent, tokens, caption", source).replace("in: hq,", "in: one,")
    text = text.replace("encode:\n  injectors:\n", "encode:\n  injectors:\n" + grey)
    config = configure(tmp_path, text, weights)
    (result,) = encode_data_sets(config)
    assert result.made == 3
    assert list(result.bad_files) == [str(tmp_path / "2.png")]
    data = read(tmp_path, keep=["caption"])
    assert [data[Request(i, i, 0)]["caption"] for i in range(3)] == [f"noise number {n}" for n in (0, 1, 3)]
    Image.fromarray(np.zeros((20, 12, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(ConfigurationError, match="otherwise: data was"):
        encode_data_sets(config)
    assert encode_data_sets(config, overwrite=True)[0].made == 3
    (tmp_path / "3.txt").write_text("another caption\n")
    with pytest.raises(ConfigurationError, match="otherwise: data was"):
        encode_data_sets(config)


def test_mistakes_are_told(tmp_path, weights):
    with pytest.raises(ConfigurationError, match=r"nothing writes gen; there are: .*latent"):
        encoded(tmp_path, weights, "datasets.train.keep=[latent, tokens, gen]")
    with pytest.raises(ConfigurationError, match=r"encode.mirror: 'caption' is no batch of images"):
        encoded(tmp_path, weights, "encode.mirror=[caption]", f"datasets.train.folder={tmp_path}/b")
    with pytest.raises(DataError, match="holds no encoded samples; make it with `dlas data encode"):
        create_dataset({"mode": "latents", "folder": str(tmp_path / "no"), "keep": ["a"]}, phase="train", name="train")
    with pytest.raises(ConfigurationError, match="has no 'encode"):
        encode_data_sets(configure(tmp_path, ahead(tmp_path), weights, "encode=null"))


def test_numbers_too_large_for_half_precision_are_not_kept(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(ToyAutoencoder, "encode", lambda self, x: (x.new_full((len(x), 4, 2, 2), 1e5), x))
    with pytest.raises(DataError, match=r"too large for fp16.*1e\+05.*dtype: fp32"):
        encoded(tmp_path, weights, "encode.dtype=fp16")


def test_the_checker_knows_what_the_data_set_gives_and_who_uses_the_encoder(tmp_path):
    path = tmp_path / "options.yml"
    path.write_text(ahead(tmp_path))
    assert [str(problem) for problem in check(path)] == []
    path.write_text(ahead(tmp_path, keep="latent"))
    assert any("nothing writes the state key 'tokens'" in str(problem) for problem in check(path))
    path.write_text(ahead(tmp_path).replace("rgb_n1_to_1", "rgb_n1"))
    assert any("has no option 'rgb_n1'" in str(problem) for problem in check(path))


def test_from_the_command_line(tmp_path, weights, capsys):
    path = tmp_path / "options.yml"
    path.write_text(ahead(tmp_path))
    arguments = ["data", "encode", "-opt", str(path), "--set", weights]
    assert main(arguments) == 0
    assert "samples encoded" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments[:4]]) == 2
    assert "was encoded otherwise: networks.autoencoder.weights" in capsys.readouterr().err


def test_what_plans_differ_in_is_told_in_words():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": [1]}) == [
        "a.b was 1 and is 3", "c was 2 and is not there", "d was not there and is [1]"
    ]  # fmt: skip


def test_a_fingerprint_is_of_names_types_and_values():
    torch.manual_seed(0)
    one = nn.Linear(2, 2)
    same = nn.Linear(2, 2)
    same.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(same)
    with torch.no_grad():
        same.bias[1] += 1e-6
    others = {fingerprint(one), fingerprint(same), fingerprint(one.to(torch.bfloat16)), fingerprint(nn.Sequential(one))}
    assert len(others) == 4


def test_positions_of_copies_do_not_meet(tmp_path, weights, monkeypatch):
    seen = []
    monkeypatch.setattr(
        encoding, "Context", lambda networks, **rest: seen.extend(rest["positions"]) or Context(networks, **rest)
    )
    (result,) = encoded(tmp_path, weights, "encode.copies=3")
    assert sorted(seen) == list(range(3 * result.samples))
    assert json.loads((tmp_path / "encoded/store.json").read_text())["views"] == 3
