"""What is done with TorToiSe's networks, one function a stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlas.archs.speech.clvp import CLVP2
from dlas.archs.speech.cvvp import CVVP
from dlas.archs.speech.diffusion_tts import DiffusionTTS
from dlas.archs.speech.unified_voice import UnifiedVoice
from dlas.diffusion.denoising import NetworkDenoiser
from dlas.diffusion.guidance import ClassifierFree, Guidance, clip
from dlas.diffusion.levels import Prediction
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.respacing import Respaced, spaced_timesteps
from dlas.diffusion.samplers import Noise, create_sampler
from dlas.diffusion.sampling import sample
from dlas.layers.contrastive import pair_similarity
from dlas.layers.mel import denormalise_mel


def fit_to_text(clvp: CLVP2, text: Tensor, codes: Tensor, keep: Tensor | None = None) -> Tensor:
    """How well candidates (N, L) fit a text (1, T): (N,). `keep`, (N, L) bool: the codes that are said."""
    latents = clvp.text_latents(text), clvp.speech_latents(codes, keep)
    return pair_similarity(*latents, clvp.temperature).float()


def fit_to_voice(cvvp: CVVP, clips: Tensor, codes: Tensor, keep: Tensor | None = None) -> Tensor:
    """How well candidates (N, L) fit the clips (clips, bins, frames) of a voice, on average: (N,)."""
    if keep is None:
        speech = cvvp.speech_latents(codes)
    else:  # the network knows no padding
        speech = torch.cat([cvvp.speech_latents(row[None, kept]) for row, kept in zip(codes, keep, strict=True)])
    voice = cvvp.conditioning_latents(clips)
    return pair_similarity(voice[None], speech[:, None], cvvp.temperature).mean(1).float()


def features_of(gpt: UnifiedVoice, voice: Tensor, text: Tensor, codes: Tensor) -> Tensor:
    """What the decoder reads of codes: (1, channels), (1, T), (1, L) -> (1, L, channels)."""
    sizes = torch.tensor([text.shape[1]]), torch.tensor([codes.shape[1] * gpt.compression])
    features: Tensor = gpt(voice, text, sizes[0], codes, sizes[1], return_latent=True, clip_inputs=False)
    return features


def spectrogram_of(
    decoder: DiffusionTTS,
    process: Timesteps,
    aligned: Tensor,
    voice: Tensor,
    frames: int,
    noise: Noise,
    *,
    steps: int,
    sampler: str = "ancestral",
    guidance: float = 0.0,
    prediction: Prediction = "eps",
) -> Tensor:
    """Decodes by diffusion. The condition is encoded once, and guidance is one call of twice the batch.

    Args:
        decoder: the network.
        process: that it was trained with.
        aligned: codes (1, L), or features (1, L, channels).
        voice: latent, (1, channels).
        frames: length of the result.
        noise: of the chain, float32.
        steps: evenly spaced among those of the process: both ends included for eps, without the clean end for x0.
        sampler: its name.
        guidance: k of (1 + k) good - k bad, growing from 0 at the noisiest.
        prediction: what the network was trained to predict.

    Returns:
        Log-mel spectrogram, (1, bins, frames), float32.
    """
    # What is seen at the clean end is the result: a network that predicts the noise corrects it there by little, one that
    # predicts the spectrogram makes it anew, out of samples smoother than any that it was trained on.
    own = spaced_timesteps(process.steps, [steps])
    spaced = Respaced(process, own if prediction == "eps" else sorted(int(time) for time in process.spaced(steps)))
    condition = decoder.timestep_independent(aligned, voice, frames)

    def network(x: Tensor, times: Tensor, **conditions: Any) -> Tensor:
        predicted: Tensor = decoder(x.to(condition.dtype), times, **conditions)
        return predicted

    given: dict[str, Any] = {"process": spaced, "prediction": prediction, "learned_variance": True, "transform": clip()}
    given["conditions"] = {"precomputed_aligned_embeddings": condition}
    if guidance:
        without = decoder.unconditioned_embedding.to(condition.dtype).expand_as(condition)
        given["unconditional"] = {"precomputed_aligned_embeddings": without}
        denoise: NetworkDenoiser = ClassifierFree(network, guidance=Guidance(1 + guidance, ramp=True), **given)
    else:
        denoise = NetworkDenoiser(network, **given)
    return denormalise_mel(sample(denoise, spaced, create_sampler({"type": sampler}), noise, steps=steps).x)
