"""Families of fixtures whose network or function the project does not have yet. An entry goes when its family is built."""

from __future__ import annotations

NOT_BUILT_YET = {
    "tortoise/golden_autoregressive*": "speech: autoregressive model",
    "tortoise/manifest_autoregressive*": "speech: autoregressive model",
    "tortoise/golden_classifier*": "speech: classifier",
    "tortoise/manifest_classifier*": "speech: classifier",
    "tortoise/golden_clvp*": "speech: CLVP",
    "tortoise/manifest_clvp*": "speech: CLVP",
    "tortoise/golden_cvvp*": "speech: CVVP",
    "tortoise/manifest_cvvp*": "speech: CVVP",
    "tortoise/golden_diffusion_decoder*": "speech: diffusion decoder",
    "tortoise/manifest_diffusion_decoder*": "speech: diffusion decoder",
    "tortoise/golden_dvae*": "speech: discrete VAE",
    "tortoise/manifest_dvae*": "speech: discrete VAE",
    "tortoise/golden_mel_frontends*": "speech: mel front ends",
    "tortoise/golden_pipeline*": "speech: pipeline",
    "tortoise/golden_rlg*": "speech: random latent generator",
    "tortoise/manifest_rlg*": "speech: random latent generator",
    "tortoise/golden_tokenizer*": "speech: tokenizer",
    "tortoise/golden_vocoder*": "speech: vocoder",
    "tortoise/manifest_vocoder*": "speech: vocoder",
}
