"""Distances between waveforms against closed forms, and what judges a vocoder."""

from __future__ import annotations

import math

import pytest
import torch

from dlas.archs import create_network
from dlas.context import Context
from dlas.layers.pitch import yin
from dlas.layers.stft import stft_magnitude
from dlas.losses.adversarial import DiscriminatorGANLoss, GeneratorGANLoss
from dlas.metrics import create_metric
from dlas.metrics.sound import mel_cepstra, warped_distance
from dlas.registry import LOSSES

RATE = 24000


def tone(frequency: float, seconds: float = 0.5, amplitude: float = 0.3, rate: int = RATE) -> torch.Tensor:
    """Harmonics of a pitch, (1, 1, N)."""
    time = torch.arange(int(seconds * rate), dtype=torch.float64) / rate
    wave = sum(torch.sin(2 * math.pi * frequency * k * time) / k for k in range(1, 6))
    return (amplitude * wave).float()[None, None]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


class TestSpectra:
    def test_halving_a_waveform(self) -> None:
        """|S - S/2| / |S| is 1/2, and every logarithm differs by log 2."""
        real = noise(2, 1, 4096)
        loss, logged = LOSSES.create("multi_resolution_stft", {"real": "r", "fake": "f"})(
            {"r": real, "f": real / 2}, Context({})
        )
        assert logged["spectral_convergence"].item() == pytest.approx(0.5, abs=1e-5)
        assert logged["log_magnitude"].item() == pytest.approx(math.log(2), rel=1e-3)  # but for bins at the floor
        assert loss.item() == pytest.approx(0.5 + math.log(2), rel=1e-3)
        metric = create_metric({"type": "multi_resolution_stft"})
        assert metric.update(real / 2, real).tolist() == pytest.approx([0.5 + math.log(2)] * 2, rel=1e-3)

    def test_each_sample_counts_alike_however_the_batch_is_cut(self) -> None:
        real, fake = noise(3, 1, 3000), noise(3, 1, 3000, seed=1) * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
        loss = LOSSES.create("multi_resolution_stft", {"real": "r", "fake": "f"})
        whole = loss({"r": real, "f": fake}, Context({}))[0]
        parts = [loss({"r": r[None], "f": f[None]}, Context({}))[0] for r, f in zip(real, fake, strict=True)]
        torch.testing.assert_close(torch.stack(parts).mean(), whole)

    def test_silence_has_a_finite_gradient(self) -> None:
        fake = torch.zeros(1, 1, 3000, requires_grad=True)
        loss, _ = LOSSES.create("multi_resolution_stft", {"real": "r", "fake": "f"})(
            {"r": noise(1, 1, 3000), "f": fake}, Context({})
        )
        loss.backward()
        assert fake.grad.isfinite().all()

    def test_a_bin_holds_its_frequency(self) -> None:
        """A sine of amplitude a in the middle of a bin: a times half the sum of the window."""
        wave = 0.4 * torch.cos(2 * math.pi * 32 / 256 * torch.arange(4096))
        found = stft_magnitude(wave[None], (256, 64, 128))[0, :, 30]
        assert found.argmax() == 32
        assert found[32].item() == pytest.approx(0.4 * torch.hann_window(128).sum().item() / 2, rel=1e-4)

    @pytest.mark.parametrize("wrong", [[[512, 600, 240]], [[512, 50]], []])
    def test_wrong_resolutions(self, wrong: list[list[int]]) -> None:
        with pytest.raises(ValueError, match="resolution"):
            LOSSES.create("multi_resolution_stft", {"real": "r", "fake": "f", "resolutions": wrong})

    def test_different_lengths(self) -> None:
        with pytest.raises(ValueError, match="same shape; check the hop length"):
            LOSSES.create("multi_resolution_stft", {"real": "r", "fake": "f"})(
                {"r": noise(1, 1, 3000), "f": noise(1, 1, 3001)}, Context({})
            )


class TestCepstra:
    def test_a_ripple_of_the_spectrum(self) -> None:
        """a cos(pi m (k + 1/2) / K) is the m-th coefficient alone: 10 / ln 10 sqrt(2) a in dB."""
        k = torch.arange(80) + 0.5
        mel = (0.7 * torch.cos(math.pi * 5 * k / 80) + 3).expand(1, 4, 80).mT
        cepstra = mel_cepstra(mel, 13)
        expected = torch.zeros(1, 13, 4, dtype=torch.float64)
        expected[:, 4] = 0.7
        torch.testing.assert_close(cepstra, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("align", ["frames", "dtw"])
    def test_loudness_does_not_count(self, align: str) -> None:
        wave = tone(120) + 0.1 * noise(1, 1, 12000)
        metric = create_metric({"type": "mel_cepstral_distortion", "align": align})
        assert metric.update(wave, wave).item() == pytest.approx(0, abs=1e-6)
        assert metric.update(wave / 2, wave).item() < 0.1
        assert metric.update(noise(1, 1, 12000), wave).item() > 5

    def test_warping_undoes_another_pace(self) -> None:
        frames = torch.tensor([0.0, 1.0, 5.0, 2.0])
        slow = frames.repeat_interleave(3)
        assert warped_distance((frames[:, None] - slow).abs()[None]).item() == 0
        other = torch.tensor([0.0, 1.0, 5.0, 4.0])
        # the last of five steps costs 2 at the least: (0,0), (1,1), (2,2), (3,3)
        assert warped_distance((frames[:, None] - other).abs()[None]).item() == pytest.approx(2 / 4)

    def test_warping_is_the_cheapest_path(self) -> None:
        """Against the recursion written out cell by cell."""
        costs = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        for sample, found in zip(costs, warped_distance(costs), strict=True):
            best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (sample[0, 0].item(), 1)}
            for i in range(5):
                for j in range(7):
                    if (i, j) != (0, 0):
                        before = [best[p] for p in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if p in best]
                        cost, steps = min(before)
                        best[i, j] = (cost + sample[i, j].item(), steps + 1)
            cost, steps = best[4, 6]
            assert found.item() == pytest.approx(cost / steps)


class TestPitch:
    @pytest.mark.parametrize("frequency", [75.0, 110.0, 233.3, 440.0])
    def test_of_tones(self, frequency: float) -> None:
        found = yin(tone(frequency)[0], RATE)[0, 4:-4]
        assert (1200 * torch.log2(found / frequency)).abs().max() < 3  # cents

    def test_noise_and_silence_have_none(self) -> None:
        assert yin(noise(1, 12000), RATE).count_nonzero() <= 1
        assert yin(torch.zeros(1, 12000), RATE).count_nonzero() == 0
        assert yin(1e-4 * tone(110)[0], RATE).count_nonzero() == 0

    def test_a_semitone_is_a_hundred_cents(self) -> None:
        metric = create_metric({"type": "f0_error"})
        low, high = tone(110), tone(110 * 2 ** (1 / 12))
        assert metric.update(high, low).item() == pytest.approx(100, abs=2)
        assert metric.update(torch.zeros_like(low), low).item() == torch.inf  # no frame is voiced in both

    def test_voicing(self) -> None:
        metric = create_metric({"type": "voicing_error"})
        voiced, half = tone(110, seconds=1), tone(110, seconds=1)
        half[..., :12000] = 0
        assert metric.update(voiced, voiced).item() == 0
        assert metric.update(half, voiced).item() == pytest.approx(0.5, abs=0.05)


class TestDiscriminators:
    def test_published_sizes(self) -> None:
        with torch.device("meta"):
            network = create_network({"which_model_D": "univnet_discriminator"})
        assert [judge.resolution for judge in network.MRD.discriminators] == [
            (1024, 120, 600),
            (2048, 240, 1200),
            (512, 50, 240),
        ]
        assert [judge.period for judge in network.MPD.discriminators] == [2, 3, 5, 7, 11]
        one = network.MRD.discriminators[0]
        assert [tuple(conv.weight_v.shape) for conv in one.convs] == [(32, 1, 3, 9), *[(32, 32, 3, 9)] * 3, (32, 32, 3, 3)]

    def test_a_period_sees_every_nth_sample(self) -> None:
        """A change of one sample is seen in one column of the scores alone."""
        torch.manual_seed(0)
        network = create_network({"which_model_D": "multi_period_discriminator", "periods": [5], "channels": [3, 4]})
        wave = noise(1, 1, 200)
        changed = wave.clone()
        changed[..., 53] += 1
        difference = (network(wave)[0] - network(changed)[0]).abs().amax((0, 1, 2))
        assert (difference > 0).tolist() == [False, False, False, True, False]

    @pytest.mark.parametrize("magnitude", ["linear", "log"])
    def test_least_squares_losses_are_the_mean_over_all_judges(self, magnitude: str) -> None:
        torch.manual_seed(0)
        small = {
            "resolutions": [[64, 8, 32], [32, 4, 16]],
            "periods": [2, 3],
            "spectrogram_channels": 2,
            "period_channels": [2, 2],
        }
        network = create_network({"which_model_D": "univnet_discriminator", "magnitude": magnitude, **small})
        state = {"r": noise(2, 1, 300), "f": noise(2, 1, 300, seed=1).requires_grad_()}
        context = Context({"d": network}, trained=["d"], positions=[0, 1])
        judged, made = (
            DiscriminatorGANLoss(gan_type="lsgan", real="r", fake="f"),
            GeneratorGANLoss(gan_type="lsgan", discriminator="d", fake="f"),
        )
        real, fake = network(state["r"]), network(state["f"])
        assert len(real) == 4
        expected = sum(((r - 1) ** 2).mean() + (f**2).mean() for r, f in zip(real, fake, strict=True)) / 4
        torch.testing.assert_close(judged(state, context)[0], expected)
        loss, _ = made(state, context)
        torch.testing.assert_close(loss, sum(((f - 1) ** 2).mean() for f in fake) / 4)
        loss.backward()
        assert state["f"].grad.abs().sum() > 0
