"""Tacotron 2 and WaveGlow against what their papers say, written out step by step, and the shape of their published weights."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.archs.speech.tacotron2 import STOP_CHECK, Tacotron2
from dlas.archs.speech.waveglow import HOP, WaveGlow
from dlas.context import Context
from dlas.errors import ConfigurationError
from dlas.layers.weight_norm import fold_weight_norm
from dlas.registry import ARCHS, LOSSES


def tiny(name: str, **more: object) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    options, inputs = ARCHS.get(name).tiny()
    network = create_network({"which_model": name, **options, **more}).eval()
    for weight in network.parameters():  # such that all parts matter
        nn.init.normal_(weight, std=0.5)
    return network, inputs


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = create_network({"which_model": name})
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


class TestTacotron2:
    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            ("embedding.weight", (148, 512)),
            ("encoder.convolutions.2.0.conv.weight", (512, 512, 5)),
            ("encoder.convolutions.2.1.running_mean", (512,)),
            ("encoder.lstm.weight_ih_l0_reverse", (1024, 512)),
            ("decoder.prenet.layers.0.linear_layer.weight", (256, 80)),
            ("decoder.attention_rnn.weight_ih", (4096, 768)),
            ("decoder.attention_layer.query_layer.linear_layer.weight", (128, 1024)),
            ("decoder.attention_layer.memory_layer.linear_layer.weight", (128, 512)),
            ("decoder.attention_layer.v.linear_layer.weight", (1, 128)),
            ("decoder.attention_layer.location_layer.location_conv.conv.weight", (32, 2, 31)),
            ("decoder.attention_layer.location_layer.location_dense.linear_layer.weight", (128, 32)),
            ("decoder.decoder_rnn.weight_ih", (4096, 1536)),
            ("decoder.linear_projection.linear_layer.weight", (80, 1536)),
            ("decoder.gate_layer.linear_layer.bias", (1,)),
            ("postnet.convolutions.0.0.conv.weight", (512, 80, 5)),
            ("postnet.convolutions.4.0.conv.weight", (80, 512, 5)),
        ],
    )
    def test_published_names(self, key: str, shape: tuple[int, ...]) -> None:
        assert shapes("nv_tacotron2")[key] == shape

    def test_published_size(self) -> None:
        found = shapes("nv_tacotron2")
        counted = [math.prod(shape) for key, shape in found.items() if "running" not in key and "num_batches" not in key]
        assert sum(counted) == 28_193_153  # 28.2 million, as NVIDIA says
        assert len(found) == 84

    def test_guided_frames_are_those_of_the_steps_written_out(self) -> None:
        network, (text, lengths, mel, frames) = tiny("nv_tacotron2", mask_padding=False)
        assert isinstance(network, Tacotron2)
        made, corrected, gate, alignments = network(text, lengths, mel, frames)
        expected = written_out(network, text, lengths, mel)
        for one, two in zip((made, gate, alignments), expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(corrected, made + network.postnet(made))
        torch.testing.assert_close(alignments.sum(-1), torch.ones(2, 6))
        assert alignments[0, :, 3].abs().max() == 0  # of three letters

    def test_samples_of_a_batch_are_on_their_own_and_need_no_order(self) -> None:
        network, (text, lengths, mel, frames) = tiny("nv_tacotron2")
        together = network(text, lengths, mel, frames)
        alone = network(text[:1], lengths[:1], mel[:1], frames[:1])
        torch.testing.assert_close(together[0][:1], alone[0], rtol=1e-5, atol=1e-5)
        turned = network(text.flip(0), lengths.flip(0), mel.flip(0), frames.flip(0))
        for one, two in zip(together, turned, strict=True):
            torch.testing.assert_close(one.flip(0), two, rtol=1e-5, atol=1e-5)

    def test_beyond_the_end_is_nothing(self) -> None:
        network, inputs = tiny("nv_tacotron2")
        made, corrected, gate, _ = network(*inputs)
        assert made[1, :, 4:].abs().max() == 0
        assert corrected[1, :, 4:].abs().max() == 0
        assert (gate[1, 4:] == 1e3).all()
        assert made[1, :, :4].abs().min() > 0

    def test_reading_is_guidance_by_itself(self) -> None:
        network, (text, lengths, *_) = tiny("nv_tacotron2", max_decoder_steps=9, mask_padding=False, gate_threshold=1.0)
        made, corrected, gate, alignments, ends = network.inference(text, lengths)
        assert made.shape == (2, 4, 9)
        assert ends.tolist() == [9, 9]
        with torch.no_grad():
            guided = network(text, lengths, made, ends)
        for one, two in zip((made, corrected, gate, alignments), guided, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("last", [1, 5, STOP_CHECK, STOP_CHECK + 1])
    def test_reading_ends_with_the_frame_that_opens_the_gate(self, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
        network, (text, *_) = tiny("nv_tacotron2", max_decoder_steps=3 * STOP_CHECK)
        frames = network.decoder.frames
        calls = []

        def gated(states: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(0)
            frame, _ = frames(states, contexts)
            return frame, torch.tensor([4.0 if len(calls) >= last else -4.0, 4.0])

        monkeypatch.setattr(network.decoder, "frames", gated)
        made, _, _, _, ends = network.inference(text)
        assert ends.tolist() == [last, 1]
        assert made.shape[-1] == last
        assert len(calls) == math.ceil(last / STOP_CHECK) * STOP_CHECK  # not all that are allowed
        assert last == 1 or made[1, :, 1:].abs().max() == 0

    def test_dropout_of_what_is_fed_back(self) -> None:
        network, inputs = tiny("nv_tacotron2", prenet_dropout="always")
        assert not network(*inputs)[0].equal(network(*inputs)[0])
        quiet, inputs = tiny("nv_tacotron2")
        assert quiet(*inputs)[0].equal(quiet(*inputs)[0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"symbols_embedding_dim": 8}, "must be equal and even"), ({"postnet_kernel_size": 4}, "4 must be odd")],
    )
    def test_mistakes(self, options: dict[str, int], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            tiny("nv_tacotron2", **options)


def written_out(network: Tacotron2, text: Tensor, lengths: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder's equations one frame after the other, the text read by torch's own LSTM over packed sequences."""
    x = network.embedding(text).mT
    for layer in network.encoder.convolutions:
        x = layer(x).relu()
    packed = nn.utils.rnn.pack_padded_sequence(x.mT, lengths, batch_first=True, enforce_sorted=False)
    features, _ = nn.utils.rnn.pad_packed_sequence(network.encoder.lstm(packed)[0], batch_first=True)
    decoder, attention = network.decoder, network.decoder.attention_layer
    there = torch.arange(text.shape[1]) < lengths[:, None]
    query = cell = torch.zeros(len(text), decoder.attention_rnn.hidden_size)
    state = state_cell = torch.zeros(len(text), decoder.decoder_rnn.hidden_size)
    weights = summed = torch.zeros(text.shape)
    context = torch.zeros(len(text), features.shape[-1])
    frames, gates, alignments = [], [], []
    for number in range(mel.shape[-1]):
        fed = mel[..., number - 1] if number else torch.zeros(mel.shape[:2])
        for layer in decoder.prenet.layers:
            fed = layer(fed).relu()
        query, cell = decoder.attention_rnn(torch.cat([fed, context], 1), (query, cell))
        location = attention.location_layer.location_conv(torch.stack([weights, summed], 1)).mT
        location = attention.location_layer.location_dense(location)
        compared = attention.query_layer(query)[:, None] + location + attention.memory_layer(features)
        energy = attention.v(compared.tanh())[..., 0].masked_fill(~there, -torch.inf)
        weights = energy.softmax(-1)
        summed = summed + weights
        context = (weights[..., None] * features).sum(1)
        state, state_cell = decoder.decoder_rnn(torch.cat([query, context], 1), (state, state_cell))
        both = torch.cat([state, context], 1)
        frames.append(decoder.linear_projection(both))
        gates.append(decoder.gate_layer(both)[:, 0])
        alignments.append(weights)
    return torch.stack(frames, -1), torch.stack(gates, -1), torch.stack(alignments, 1)


class TestLoss:
    KEYS: ClassVar = {
        "mel_target_key": "mel",
        "mel_output_key": "made",
        "mel_output_postnet_key": "corrected",
        "gate_target_key": "gate",
        "gate_output_key": "logits",
    }

    def test_is_the_sum_of_three(self) -> None:
        mel, gate = torch.randn(2, 4, 5), torch.tensor([[0.0, 0, 0, 0, 1], [0, 0, 1, 1, 1]])
        state = {"mel": mel, "made": mel + 1, "corrected": mel - 2, "gate": gate, "logits": torch.zeros(2, 5)}
        loss, parts = LOSSES.create("nv_tacotron2_loss", self.KEYS)(state, Context({}))
        assert {key: part.item() for key, part in parts.items()} == pytest.approx(
            {"mel_loss": 1, "postnet_loss": 4, "gate_loss": math.log(2)}
        )
        assert loss.item() == pytest.approx(5 + math.log(2))

    def test_different_bins(self) -> None:
        state = {"mel": torch.zeros(1, 80, 5), "made": torch.zeros(1, 100, 5), "corrected": torch.zeros(1, 100, 5)}
        state |= {"gate": torch.zeros(1, 5), "logits": torch.zeros(1, 5)}
        with pytest.raises(ValueError, match="check n_mel_channels"):
            LOSSES.create("nv_tacotron2_loss", self.KEYS)(state, Context({}))

    def test_what_is_beyond_the_end_costs_nothing(self) -> None:
        """The gate's logit there is so high, and its target 1; frames are 0 in both."""
        network, (text, lengths, mel, frames) = tiny("nv_tacotron2")
        mel[1, :, 4:] = 0
        made, corrected, logits, _ = network(text, lengths, mel, frames)
        gate = (torch.arange(6) >= frames[:, None] - 1).float()
        state = {"mel": mel, "made": made, "corrected": corrected, "gate": gate, "logits": logits}
        loss, parts = LOSSES.create("nv_tacotron2_loss", self.KEYS)(state, Context({}))
        there = torch.arange(6) < frames[:, None]
        expected = F.binary_cross_entropy_with_logits(logits[there], gate[there]) * there.sum() / there.numel()
        torch.testing.assert_close(parts["gate_loss"], expected)
        assert loss.isfinite()


class TestWaveGlow:
    def test_published_names(self) -> None:
        found = shapes("nv_waveglow")
        for key, shape in {
            "upsample.weight": (80, 80, 1024),
            "WN.0.start.weight_v": (256, 4, 1),
            "WN.4.start.weight_v": (256, 3, 1),
            "WN.8.start.weight_g": (256, 1, 1),
            "WN.8.start.weight_v": (256, 2, 1),
            "WN.11.cond_layer.weight_v": (4096, 640, 1),
            "WN.11.in_layers.7.weight_v": (512, 256, 3),
            "WN.11.res_skip_layers.6.weight_v": (512, 256, 1),
            "WN.11.res_skip_layers.7.weight_v": (256, 256, 1),
            "WN.11.end.weight": (4, 256, 1),
            "convinv.0.conv.weight": (8, 8, 1),
            "convinv.11.conv.weight": (4, 4, 1),
        }.items():
            assert found[key] == shape, key

    def test_sound_to_noise_and_back(self) -> None:
        network, _ = tiny("nv_waveglow")
        network.double()
        mel, audio = torch.randn(2, 2, 1).double(), torch.randn(2, 1, HOP).double()
        noise, _ = network(mel, audio)
        assert noise.shape == (2, 4, HOP // 4)
        torch.testing.assert_close(network.infer(mel, noise=noise / 0.5, sigma=0.5), audio[:, 0], rtol=1e-6, atol=1e-6)

    def test_likelihood_is_that_of_the_change_of_variables(self) -> None:
        network, _ = tiny("nv_waveglow")
        network.double()
        mel, audio = torch.randn(1, 2, 1).double(), 0.3 * torch.randn(1, 24).double()
        noise, likelihood = network(mel, audio, sigma=0.8)
        jacobian = torch.autograd.functional.jacobian(lambda x: network(mel, x)[0], audio).reshape(24, 24)
        expected = noise.square().sum() / (2 * 0.8**2) - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(likelihood[0].double(), expected / 24, rtol=1e-5, atol=1e-6)

    def test_training_raises_the_likelihood(self) -> None:
        torch.manual_seed(0)
        options, _ = ARCHS.get("nv_waveglow").tiny()
        network = WaveGlow(**options)
        audio = torch.sin(torch.arange(HOP) * 0.3)[None] * 0.5
        mel = torch.zeros(1, 2, 1)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        values = []
        for _ in range(30):
            likelihood = network(mel, audio)[1].mean()
            optimizer.zero_grad()
            likelihood.backward()
            optimizer.step()
            values.append(likelihood.item())
        assert values[-1] < values[0] - 0.3

    def test_folding_changes_nothing(self) -> None:
        network, _ = tiny("nv_waveglow")
        mel, noise = torch.randn(1, 2, 2), torch.randn(1, 4, 2 * HOP // 4)
        before = network.infer(mel, noise=noise)
        torch.testing.assert_close(fold_weight_norm(network).infer(mel, noise=noise), before, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"WN_config": {"n_layers": 2}}, "n_layers, n_channels and an odd kernel_size"),
            ({"n_early_every": 1}, "3 steps leave 0 channels"),
        ],
    )
    def test_mistakes(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            tiny("nv_waveglow", **options)

    def test_sound_beyond_the_spectrogram(self) -> None:
        network, _ = tiny("nv_waveglow")
        with pytest.raises(ValueError, match="does not fit 1 frames of 256"):
            network(torch.zeros(1, 2, 1), torch.zeros(1, 5 * HOP))
