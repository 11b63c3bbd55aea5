"""What gpu.py trains: whole files of options, at the sizes that people train, on data in memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch

from dlas.data.base import Dataset, Request, Sample
from dlas.registry import DATASETS


@DATASETS.register("bench_tensors")
class Tensors(Dataset):
    """Random numbers of any shape, in memory.

    Args:
        uniform: shapes of what is drawn from [0, 1), by key.
        integers: by key, the shape and in the end the number that all are below.
    """

    def __init__(
        self, phase: str, /, *, uniform: dict[str, list[int]] | None = None, integers: dict[str, list[int]] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(int(phase == "train"))
        self.sample: Sample = {key: torch.rand(shape, generator=generator) for key, shape in (uniform or {}).items()}
        for key, (*shape, high) in (integers or {}).items():
            self.sample[key] = torch.randint(1, high, shape, generator=generator)

    def __len__(self) -> int:
        return 1024

    def __getitem__(self, request: Request) -> Sample:
        return self.sample


@dataclass(frozen=True)
class Case:
    """A training.

    Args:
        what: in words.
        options: the file, but for what all have in common.
        tiny: what makes it small enough for a test.
    """

    what: str
    options: str
    tiny: tuple[str, ...]


_COMMON = """
name: bench
train: {niter: 1000000000}
logger: {print_freq: 1000000000, save_checkpoint_freq: 1000000000, tensorboard: false}
"""
_RRDB = "{which_model_G: RRDBNet, nf: 64, nb: 23, gc: 32}"
_PAIRS = "{mode: bench_tensors, batch_size: 16, uniform: {lq: [3, 48, 48], hq: [3, 192, 192]}}"
_TINY_PAIRS = (
    "datasets.train={mode: bench_tensors, batch_size: 2, uniform: {lq: [3, 16, 16], hq: [3, 64, 64]}}",
    "networks.generator={which_model_G: RRDBNet, nf: 8, nb: 1, gc: 4}",
)

CASES = {
    "rrdb_psnr": Case(
        "RRDB nf 64 nb 23, batch 16, 48 to 192 px, L1",
        f"""
scale: 4
datasets: {{train: {_PAIRS}}}
networks: {{generator: {_RRDB}}}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 2.0e-4, betas: [0.9, 0.99]}}
    injectors:
      gen: {{type: generator, generator: generator, in: lq, out: gen}}
    losses:
      pix: {{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}
""",
        _TINY_PAIRS,
    ),
    "rrdb_gan": Case(
        "the same, L1 + VGG19 + U-Net discriminator",
        f"""
scale: 4
datasets: {{train: {_PAIRS}}}
networks:
  generator: {_RRDB}
  discriminator: {{type: discriminator, which_model_D: UNetDiscriminatorSN, num_feat: 64}}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 1.0e-4, betas: [0.9, 0.99]}}
    injectors:
      gen: {{type: generator, generator: generator, in: lq, out: gen}}
    losses:
      pix: {{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}
      feature: {{type: feature, which_model_F: vgg19, criterion: l1, weight: 1, random_weights: true, real: hq, fake: gen}}
      gan: {{type: generator_gan, gan_type: gan, weight: 0.1, discriminator: discriminator, fake: gen}}
  discriminator:
    training: discriminator
    optimizer: adam
    optimizer_params: {{lr: 1.0e-4, betas: [0.9, 0.99]}}
    losses:
      gan: {{type: discriminator_gan, gan_type: gan, weight: 1, real: hq, fake: gen}}
""",
        (*_TINY_PAIRS, "networks.discriminator.num_feat=4"),
    ),
    "srflow": Case(
        "SRFlow x4, K 16, batch 16, 40 to 160 px, negative log-likelihood",
        """
scale: 4
datasets: {train: {mode: bench_tensors, batch_size: 16, uniform: {lq: [3, 40, 40], hq: [3, 160, 160]}}}
networks: {generator: {which_model: srflow, nf: 64, nb: 23, gc: 32, K: 16}}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {lr: 2.5e-4, betas: [0.9, 0.99]}
    injectors:
      nll: {type: flow_nll, generator: generator, out: nll}
    losses:
      nll: {type: direct, key: nll, weight: 1}
""",
        (
            "datasets.train={mode: bench_tensors, batch_size: 2, uniform: {lq: [3, 8, 8], hq: [3, 32, 32]}}",
            "networks.generator={which_model: srflow, nf: 8, nb: 2, gc: 4, K: 1, flow: {stackRRDB: {blocks: [0, 1]}}}",
        ),
    ),
    "unet_256": Case(
        "guided-diffusion's U-Net for 256 px, 256 channels, batch 8",
        """
datasets: {train: {mode: bench_tensors, batch_size: 8, uniform: {hq: [3, 256, 256]}}}
networks:
  generator:
    which_model: guided_unet
    image_size: 256
    model_channels: 256
    out_channels: 6
    num_res_blocks: 2
    attention_resolutions: [8, 16, 32]
    channel_mult: [1, 1, 2, 2, 4, 4]
    num_head_channels: 64
    use_scale_shift_norm: true
    resblock_updown: true
steps:
  generator:
    training: generator
    optimizer: adamw
    optimizer_params: {lr: 1.0e-4}
    injectors:
      diffusion:
        type: diffusion
        in: hq
        out: loss
        generator: generator
        process: {type: vp, schedule: linear, steps: 1000}
        prediction: eps
        variance: learned_range
        loss: mse
    losses:
      diffusion: {type: direct, key: loss, weight: 1}
""",
        (
            "datasets.train={mode: bench_tensors, batch_size: 2, uniform: {hq: [3, 32, 32]}}",
            "networks.generator={which_model: guided_unet, model_channels: 32, out_channels: 6, num_res_blocks: 1, "
            "attention_resolutions: [2], channel_mult: [1, 2], num_head_channels: 16, use_scale_shift_norm: true}",
        ),
    ),
    "unified_voice": Case(
        "tortoise's autoregressive network, 30 layers of 1024, 200 letters and 250 codes, batch 32",
        """
datasets:
  train:
    mode: bench_tensors
    batch_size: 32
    uniform: {clips: [2, 80, 132]}
    integers: {text: [200, 255], codes: [250, 8192], text_lengths: [2], wav_lengths: [2]}
networks:
  gpt: {which_model: unified_voice2, layers: 30, model_dim: 1024, heads: 16, max_text_tokens: 402, max_mel_tokens: 604,
        max_conditioning_inputs: 2, number_text_tokens: 255, start_text_token: 255, number_mel_codes: 8194,
        start_mel_token: 8192, stop_mel_token: 8193}
steps:
  gpt:
    training: gpt
    optimizer: adamw
    optimizer_params: {lr: 1.0e-4, betas: [0.9, 0.96], weight_decay: 0.01}
    clip_grad_eps: 4
    injectors:
      samples: {type: arithmetic, in: [wav_lengths, 256000], out: samples, operation: multiply}
      gpt:
        type: generator
        generator: gpt
        in: [clips, text, text_lengths, codes, samples]
        args: {clip_inputs: false}
        out: [text_loss, mel_loss, logits]
    losses:
      text: {type: direct, key: text_loss, weight: 0.01}
      mel: {type: direct, key: mel_loss, weight: 1}
""",
        (
            "datasets.train={mode: bench_tensors, batch_size: 2, uniform: {clips: [2, 80, 12]}, "
            "integers: {text: [8, 255], codes: [6, 8192], text_lengths: [2], wav_lengths: [2]}}",
            "networks.gpt.layers=1",
            "networks.gpt.model_dim=32",
            "networks.gpt.heads=2",
        ),
    ),
}
"""By name. The bytes of a sample do not matter, so all samples are alike."""


def text_of(case: Case) -> str:
    """The whole file."""
    return _COMMON + case.options
