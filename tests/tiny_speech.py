"""A folder of tiny networks that speak, with random weights."""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from dlas.archs import create_network

TOKENIZER = Path(__file__).parent / "parity" / "fixtures" / "tortoise" / "data" / "tokenizer.json"

DESCRIPTION = {
    "autoregressive": {
        "layers": 1,
        "model_dim": 16,
        "heads": 2,
        "max_text_tokens": 60,
        "max_mel_tokens": 40,
        "number_text_tokens": 255,
        "number_mel_codes": 96,
        "start_mel_token": 94,
        "stop_mel_token": 95,
    },
    "clvp": {
        "dim_text": 16,
        "dim_speech": 16,
        "dim_latent": 16,
        "text_enc_depth": 1,
        "speech_enc_depth": 1,
        "text_heads": 1,
        "speech_heads": 1,
        "num_speech_tokens": 94,
    },
    "cvvp": {
        "model_dim": 16,
        "transformer_heads": 1,
        "conditioning_enc_depth": 1,
        "speech_enc_depth": 1,
        "mel_codes": 94,
    },
    "diffusion_decoder": {
        "model_channels": 16,
        "num_layers": 1,
        "in_channels": 20,
        "in_latent_channels": 16,
        "in_tokens": 97,
        "out_channels": 40,
        "num_heads": 2,
    },
    "vocoder": {
        "noise_dim": 4,
        "channel_size": 2,
        "dilations": [1, 3],
        "strides": [4, 2],
        "hop_length": 8,
        "n_mel_channels": 20,
    },
    "diffusion": {"type": "vp", "schedule": "linear", "steps": 100},
    "ending": [45, 45, 46],
    "clip_samples": 4096,
    "decoder_clip_samples": 4096,
}
FILES = {
    "autoregressive": ("unified_voice2", "autoregressive"),
    "clvp2": ("clvp2", "clvp"),
    "cvvp": ("cvvp", "cvvp"),
    "diffusion_decoder": ("diffusion_tts_flat", "diffusion_decoder"),
    "vocoder": ("univnet", "vocoder"),
}
QUICK = {"candidates": 3, "batch": 2, "steps": 3, "max_codes": 12}
"""Settings."""


def make_models(folder: Path, **told: object) -> Path:
    """Writes the networks, of which two are .safetensors, and random voices' networks."""
    folder.mkdir()
    description = DESCRIPTION | told
    (folder / "speech.yml").write_text(yaml.safe_dump(description))
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    torch.manual_seed(0)
    networks = {name: create_network({"which_model": kind, **description[key]}) for name, (kind, key) in FILES.items()}
    for name, channels in (("rlg_auto", 16), ("rlg_diffuser", 32)):
        networks[name] = create_network({"which_model": "random_latent_converter", "channels": channels})
    for name, network in networks.items():
        for weight in network.parameters():  # what is zero at first would hide what comes before
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
        if name in ("clvp2", "cvvp"):
            save_file(network.state_dict(), folder / f"{name}.safetensors")
        else:
            torch.save(network.state_dict(), folder / f"{name}.pth")
    torch.save(-torch.linspace(1, 9, 80), folder / "mel_norms.pth")
    return folder


def make_clip(path: Path, frequency: float = 220.0, seconds: float = 0.2, rate: int = 16000) -> Path:
    """Writes a tone."""
    time = np.arange(int(seconds * rate)) / rate
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((9000 * np.sin(2 * np.pi * frequency * time)).astype("<i2").tobytes())
    return path
