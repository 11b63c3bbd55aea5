"""What a sample of the diffusion decoder costs: the way of its training class, and ours.

    python benchmarks/speech_decoder.py [--width 512] [--layers 10] [--codes 40] [--steps 10] [--rounds 3]

Width 512 and 16 heads instead of the published 1024, 10 layers as published, random weights; two clips of the published 4.27 s
as the voice, a sentence of `--codes` codes. Three ways of as many ancestral steps with guidance, one thread, turns in changing
order, processor time; the results are compared first:

    reference   features and clips are encoded at each step, in two calls: one with the condition, one without
    two_calls   they are encoded once; two calls
    own         they are encoded once, guidance is one call of twice the batch, and products of matrices are packed

and `own` with DPM-Solver++ 2M at half the steps. Prints one JSON line: medians in seconds, and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
from torch import Tensor

from dlas.archs.speech.diffusion_tts import DiffusionTTS
from dlas.diffusion import NetworkDenoiser, create_process
from dlas.diffusion.guidance import Autoguidance, Guidance, clip
from dlas.diffusion.processes import Timesteps
from dlas.diffusion.respacing import Respaced, spaced_timesteps
from dlas.diffusion.samplers import create_sampler
from dlas.diffusion.sampling import sample, seeded_noise
from dlas.inference.speech.codes import frames_of
from dlas.inference.speech.stages import spectrogram_of
from dlas.layers.mel import denormalise_mel
from dlas.layers.packed_linear import pack_linear_layers


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"width": 512, "layers": 10, "codes": 40, "steps": 10, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, steps, frames = arguments.width, arguments.steps, frames_of(arguments.codes)
    decoder = DiffusionTTS(model_channels=width, in_latent_channels=width, num_layers=arguments.layers)
    decoder.eval().requires_grad_(False)
    torch.nn.init.normal_(decoder.out[-1].weight, std=0.01)
    prepared = pack_linear_layers(copy.deepcopy(decoder))
    process = create_process({"type": "vp", "schedule": "linear", "steps": 4000})
    assert isinstance(process, Timesteps)
    features, clips = torch.randn(1, arguments.codes, width), torch.randn(1, 2, 100, 401) - 4
    noise = seeded_noise(0, [0], (100, frames))

    def two_calls(conditions: dict[str, Tensor]) -> Tensor:
        spaced = Respaced(process, spaced_timesteps(process.steps, [steps]))
        given: dict[str, Any] = {"process": spaced, "learned_variance": True}
        good = NetworkDenoiser(decoder, conditions=conditions, transform=clip(), **given)
        bad = NetworkDenoiser(decoder, conditions={"conditioning_free": True}, **given)
        denoise = Autoguidance(good, bad, Guidance(3.0, ramp=True))
        return denormalise_mel(sample(denoise, spaced, create_sampler({"type": "ancestral"}), noise, steps=steps).x)

    def encoded() -> Tensor:
        return decoder.timestep_independent(features, decoder.conditioning(clips), frames)

    def own(sampler: str = "ancestral", count: int = steps) -> Tensor:
        voice = prepared.conditioning(clips)
        return spectrogram_of(prepared, process, features, voice, frames, noise, steps=count, sampler=sampler, guidance=2.0)

    ways: dict[str, Callable[[], Tensor]] = {
        "reference": lambda: two_calls({"aligned_conditioning": features, "conditioning_input": clips}),
        "two_calls": lambda: two_calls({"precomputed_aligned_embeddings": encoded()}),
        "own": own,
        "own_half_the_steps": lambda: own("dpmpp_2m", steps // 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        expected = ways["reference"]()
        for name in ("two_calls", "own"):
            torch.testing.assert_close(ways[name](), expected, rtol=1e-3, atol=1e-3)
        for number in range(arguments.rounds):
            for name in list(ways) if number % 2 else reversed(ways):
                begun = time.process_time()
                ways[name]()
                seconds[name].append(time.process_time() - begun)
    line = {f"{name}_s": round(statistics.median(spent), 2) for name, spent in seconds.items()}
    for name in list(ways)[1:]:
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds["reference"], strict=True)]
        line[f"{name}_of_reference"] = round(statistics.median(ratios), 3)
    settings = {name: getattr(arguments, name) for name in ("width", "layers", "codes", "steps")}
    print(json.dumps(line | settings))


if __name__ == "__main__":
    main()
