"""Small speech for tests: clips that are tones, networks of a few weights, and what the injectors of speech are tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from dlas.archs import create_network

WORDS = ("the cat sat", "a dog ran far", "see the red ship", "two birds sing", "rain falls", "we go home now")
TOKENIZER = Path(__file__).parent / "parity/fixtures/tortoise/data/tokenizer.json"
MEL_NORMS = Path(__file__).parent / "parity/fixtures/tortoise/data/mel_norms.pth"


def tone(seconds: float, rate: int = 22050, pitch: float = 220.0) -> np.ndarray:
    """A tone with overtones that swells and fades, within [-0.6, 0.6]."""
    time = np.arange(round(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3))
    return (0.3 * wave * np.sin(np.pi * time / seconds)).astype(np.float32)


def corpus(folder: Path, speakers: int = 2, clips: int = 3, rate: int = 22050, seconds: float = 1.0) -> Path:
    """Clips of several speakers, each a little longer than the one before, and the list `clips.jsonl` of them."""
    lines = []
    for speaker in range(speakers):
        for clip in range(clips):
            name = f"s{speaker}/{clip}.wav"
            (folder / f"s{speaker}").mkdir(parents=True, exist_ok=True)
            sound = tone(seconds + 0.1 * clip, rate, 150.0 + 100 * speaker + 7 * clip)
            soundfile.write(folder / name, sound, rate)
            text = WORDS[(speaker * clips + clip) % len(WORDS)]
            lines.append(f'{{"file": "{name}", "text": "{text}", "speaker": "{speaker}"}}\n')
    (folder / "clips.jsonl").write_text("".join(lines))
    return folder / "clips.jsonl"


GPT = {"layers": 1, "model_dim": 8, "heads": 2, "max_text_tokens": 20, "max_mel_tokens": 60, "number_mel_codes": 10}
GPT |= {"start_mel_token": 8, "stop_mel_token": 9}
DVAE = {"positional_dims": 1, "channels": 80, "num_tokens": 8, "codebook_dim": 4, "num_layers": 2, "hidden_dim": 4}


def networks() -> dict[str, nn.Module]:
    """`dvae` and `gpt`, by the names that injectors expect."""
    torch.manual_seed(0)
    return {
        "dvae": create_network({"which_model": "dvae", **DVAE}),
        "gpt": create_network({"which_model": "unified_voice2", **GPT}),
    }


def state(batch: int = 4) -> dict[str, Tensor]:
    """Sound and what goes with it."""
    random = torch.Generator().manual_seed(1)
    return {
        "wav": torch.rand(batch, 1, 4096, generator=random) - 0.5,
        "clips": torch.rand(batch, 2, 1, 2048, generator=random) - 0.5,
        "wav_lengths": torch.tensor([4096, 1000, 3000, 2048])[:batch],
        "mel": torch.randn(batch, 80, 17, generator=random),
        "latent": torch.randn(batch, 8, generator=random),
        "text": torch.randint(1, 200, (batch, 6), generator=random),
        "text_lengths": torch.tensor([6, 2, 3, 4])[:batch],
        "codes": torch.randint(8, (batch, 12), generator=random),
    }


LATENTS = {"conditioning_clip": "clips", "text": "text", "text_lengths": "text_lengths", "input_lengths": "wav_lengths"}
INJECTORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mel_spectrogram": ({"in": "wav", "out": "o", "do_normalization": True}, state()),
    "torch_mel_spectrogram": ({"in": "wav", "out": "o", "mel_norm_file": str(MEL_NORMS)}, state()),
    "normalize_mel": ({"in": "mel", "out": "o"}, state()),
    "random_audio_crop": (
        {"in": "wav", "out": "o", "crop_size": 700, "lengths_key": "wav_lengths", "crop_start_key": "s"},
        state(),
    ),
    "audio_clip": ({"in": "wav", "out": "o", "clip_size": 1000, "ctc_codes_key": "codes", "ctc_out_key": "c"}, state()),
    "audio_resample": ({"in": "wav", "out": "o", "input_sample_rate": 22050, "output_sample_rate": 24000}, state()),
    "mel_mask": ({"in": "mel", "out": "o"}, state()),
    "discrete_token": ({"in": "mel", "out": "o"}, state()),
    "gpt_voice_latent": ({"in": "wav", "out": "o", "conditioning_length": 2048, **LATENTS}, state()),
    "conditioning_latent_distribution_divergence": (
        {"in": "latent", "out": "o", "var_loss": "v", "conditioning_clip": "mel", "generator": "gpt"},
        state(),
    ),
}
"""By name: options and a state, as in the table of all injectors."""
