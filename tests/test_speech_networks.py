"""What networks of speech do beyond the numbers of their references."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlas.archs import create_network
from dlas.archs.speech.unified_voice import UnifiedVoice
from dlas.data.text.cleaning import clean
from dlas.data.text.tokenizer import VoiceTokenizer
from dlas.errors import DataError
from dlas.interop.state_dicts import read_state_dict
from dlas.layers.mel import MelSpectrogram, denormalise_mel, normalise_mel, resample
from dlas.layers.packed_linear import pack_linear_layers
from dlas.layers.token_sampling import TokenSampling
from dlas.layers.weight_norm import fold_weight_norm
from dlas.registry import ARCHS

FIXTURES = Path(__file__).parent / "parity" / "fixtures" / "tortoise" / "data"


def small(name: str, **more: object) -> torch.nn.Module:
    torch.manual_seed(0)
    options, _ = ARCHS.get(name).tiny()
    return create_network({"which_model": name, **options, **more}).eval()


def gpt(**more: object) -> UnifiedVoice:
    network = small("unified_voice2", layers=2, max_mel_tokens=20, **more)
    assert isinstance(network, UnifiedVoice)
    for parameter in network.parameters():  # such that tokens differ clearly
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def spoken(network: UnifiedVoice, uniforms: torch.Tensor, sampling: TokenSampling) -> torch.Tensor:
    return network.generate(torch.ones(1, 8), torch.tensor([[3, 4, 5]]), uniforms, sampling)


def test_cached_decoding_is_what_whole_forwards_give() -> None:
    """Each code is the most likely one of a forward over all before it."""
    network = gpt()
    codes = spoken(network, torch.zeros(1, 12), TokenSampling(temperature=0.0))
    text, voice = torch.tensor([[3, 4, 5]]), torch.ones(1, 8)
    for place in range(12):
        given = codes[:, :place]
        lengths = torch.tensor([3]), torch.tensor([1024 * place])
        with torch.no_grad():
            _, _, logits = network(voice, text, lengths[0], given, lengths[1], clip_inputs=False)
        assert codes[0, place] == logits[0, :, place].argmax(), place
        if codes[0, place] == network.stop_mel:
            assert place > 0
            break


def test_candidates_do_not_depend_on_each_other() -> None:
    network, uniforms = gpt(), torch.rand(5, 8, generator=torch.Generator().manual_seed(1))
    sampling = TokenSampling(top_p=0.9)
    together = spoken(network, uniforms, sampling)
    alone = torch.cat([spoken(network, row[None], sampling) for row in uniforms])
    assert together.tolist() == alone.tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1


def test_nothing_but_stops_follows_a_stop() -> None:
    network = gpt()
    codes = spoken(network, torch.rand(16, 12, generator=torch.Generator().manual_seed(2)), TokenSampling())
    stopped = (codes == network.stop_mel).cumsum(1) > 0
    assert stopped.any()
    assert (codes[stopped] == network.stop_mel).all()


def test_longer_sequences_than_positions_are_refused() -> None:
    network = gpt()
    with pytest.raises(ValueError, match="max_mel_tokens"):
        spoken(network, torch.rand(1, 40), TokenSampling())


def test_padding_of_codes_has_no_say() -> None:
    network = gpt()
    text, lengths, wav = torch.tensor([[3, 4, 5]]), torch.tensor([3]), torch.tensor([4 * 1024])
    codes = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = torch.tensor([[1, 2, 3, 4, 5, 9]])
    found = [network(torch.ones(1, 8), text, lengths, each, wav, clip_inputs=False)[1] for each in (codes, other)]
    assert found[0] == found[1]


def test_checkpoints_with_masks_of_older_libraries_load(tmp_path: Path) -> None:
    network = gpt()
    older = network.state_dict() | {"gpt.h.0.attn.bias": torch.ones(1, 1, 4, 4), "gpt.h.0.attn.masked_bias": torch.tensor(-1e4)}
    network.load_state_dict(network.rename_state_dict(older), strict=True)


def test_decoder_drops_layers_and_conditions_in_training_alone() -> None:
    network = small("diffusion_tts_flat", num_layers=4, layer_drop=0.5, unconditioned_percentage=0.5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    given = (torch.randn(8, 4, 10), torch.arange(8), torch.randint(9, (8, 3)), torch.randn(8, 4, 9))
    assert torch.equal(network(*given), network(*given))
    network.train()
    assert not torch.equal(network(*given), network(*given))
    network.layer_drop, network.unconditioned = 0.0, 1.0
    free = network.eval()(*given[:2], conditioning_free=True)
    torch.testing.assert_close(network.train()(*given), free)


def test_decoder_needs_one_condition() -> None:
    network = small("diffusion_tts_flat")
    x, t = torch.randn(1, 4, 10), torch.tensor([1])
    with pytest.raises(ValueError, match="conditioning_free"):
        network(x, t)
    with pytest.raises(ValueError, match="not both"):
        network(x, t, torch.zeros(1, 3, dtype=torch.long), torch.randn(1, 4, 9), torch.randn(1, 8, 10))


def test_folded_vocoder_is_the_same() -> None:
    network = small("univnet")
    mel, noise = torch.randn(1, 4, 7), torch.randn(1, 3, 7)
    before = network(mel, noise)
    torch.testing.assert_close(fold_weight_norm(network)(mel, noise), before)
    assert not any(name.endswith("weight_v") for name in network.state_dict())
    torch.testing.assert_close(network.fold()(mel, noise), before)


def test_packed_linear_layers_are_the_same() -> None:
    """Those of transformers whose weights lie the other way round, too; a number of columns that is not even."""
    network = gpt(number_mel_codes=13)
    text, voice = torch.tensor([[3, 4, 5]]), torch.ones(1, 8)
    codes = torch.tensor([[1, 2, 3]])
    sizes = torch.tensor([3]), torch.tensor([3 * 1024])
    with torch.no_grad():
        before = network(voice, text, sizes[0], codes, sizes[1])[2]
        assert len(list(network.parameters())) > len(list(pack_linear_layers(network).parameters()))
        torch.testing.assert_close(network(voice, text, sizes[0], codes, sizes[1])[2], before)
        half = pack_linear_layers(gpt().bfloat16())
    assert isinstance(half.mel_head, torch.nn.Linear) and half.mel_head.weight.dtype == torch.bfloat16


def test_published_vocoder_file_loads(tmp_path: Path) -> None:
    """The generator is under ``model_g``, beside much that is not needed."""
    network = small("univnet")
    path = tmp_path / "vocoder.pth"
    torch.save({"model_g": network.state_dict(), "step": 3, "optim_g": {"state": {}}}, path)
    assert read_state_dict(path).keys() == network.state_dict().keys()


def test_tones_keep_their_pitch_when_resampled() -> None:
    seconds = torch.arange(22050) / 22050
    tone = torch.sin(2 * torch.pi * 440 * seconds)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(24000) / 24000)
    found = resample(tone, 22050, 24000)
    torch.testing.assert_close(found[200:-200], expected[200:-200], atol=2e-3, rtol=0)
    above = torch.sin(2 * torch.pi * 10000 * torch.arange(24000) / 24000)
    assert resample(above, 24000, 16000)[200:-200].abs().max() < 1e-2  # beyond the new band


def test_mel_has_its_energy_where_the_tone_is() -> None:
    seconds = torch.arange(24000) / 24000
    front = MelSpectrogram(sampling_rate=24000, n_mel_channels=100, mel_fmax=12000)
    low, high = (front(torch.sin(2 * torch.pi * hz * seconds)[None])[0].mean(1).argmax() for hz in (300, 3000))
    assert low < high
    mel = front(torch.rand(2, 4000) * 2 - 1)
    torch.testing.assert_close(denormalise_mel(normalise_mel(mel)), mel)


def test_audio_that_is_no_audio_is_named() -> None:
    front = MelSpectrogram()
    with pytest.raises(ValueError, match="too short"):
        front(torch.zeros(1, 100))
    with pytest.raises(ValueError, match="one channel"):
        front(torch.zeros(1, 2, 4000))


def test_texts_are_said_as_they_are_spoken() -> None:
    assert clean("Dr. Who paid $1.01 on May 3rd, 1905!") == (
        "doctor who paid one dollar, one cent on may third, nineteen oh five!"
    )
    assert clean("  A  B", "basic") == " a b"


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer at .*none\.json"):
        VoiceTokenizer(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json"):
        VoiceTokenizer(broken)
    tokenizer = VoiceTokenizer(FIXTURES / "tokenizer.json", training_signs=True)
    assert tokenizer.clean("a [b]") == "a (b)"
    assert tokenizer.decode(tokenizer.encode("Hello there.")) == "hello there."
