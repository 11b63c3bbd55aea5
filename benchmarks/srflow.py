"""SRFlow: a training step and drawing pictures, ours against the published way of computing the same network.

    python benchmarks/srflow.py [--rounds 7] [--steps 4] [--blocks 6] [--patch 160] [--batch 1] [--pictures 8]

The network is the published one for 4X (widths 64 and 320, three levels), less deep: 4 of 16 steps a level, 6 of 23 blocks in
the encoder. The rival computes the same weights step by step: the encoder to its own picture, every condition enlarged and
concatenated, each subnet over all of it, normalisations and scales as operations of their own, the determinant of each 1x1
convolution by itself, also where pictures are drawn, and its inverse each time. Latents, likelihoods, gradients and pictures
are compared first. A training step is forward, backward and Adam with the encoder frozen (`frozen`, the first half of the
paper's training) and learning too (`joint`). `one` draws a picture for each of a batch, `many` several for one low-resolution
picture, which the rival does as a batch of equals. Ours and the rival take turns. Prints one JSON line: medians of the
process's time on the processor in ms, which other load disturbs little, and the median of paired ratios (the rival over ours).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codes"))

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.archs import create_network
from dlas.archs.srflow import SRFlow
from dlas.layers.flow import ActNorm, ConditionalAffine, FlowStep, Split, Squeeze, Subnet, ZeroConv
from dlas.layers.rrdb import activate

LEARNING_RATE = 2.5e-4
HEAT = 0.9


def build(options: argparse.Namespace) -> SRFlow:
    """The network, normalised by a first batch. No weight is 0, so that all of it is at work."""
    torch.manual_seed(0)
    flow = {"stackRRDB": {"blocks": [0, 1, 2, 3]}}
    more = {"nb": options.blocks, "K": options.steps, "flow": flow, "dequantise": False, "train_RRDB": True}
    network = create_network({"which_model": "srflow", "scale": 4, **more})
    assert isinstance(network, SRFlow)
    for layer in network.modules():
        if isinstance(layer, ZeroConv):
            torch.nn.init.normal_(layer.weight, std=0.01)
    network.train()(*pictures(options))
    return network


def pictures(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """High and low resolution."""
    large = torch.rand(options.batch, 3, options.patch, options.patch)
    return large, F.avg_pool2d(large, 4)


class Published:
    """A network's weights, computed in the published way."""

    def __init__(self, network: SRFlow) -> None:
        self.network = network

    def encode(self, picture: Tensor, low_res: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Latents and bits a position."""
        conditions = self.conditions(low_res)
        x, log_density, latents, level = picture, picture.new_zeros(len(picture)), [], -1
        for layer in self.network.flowUpsamplerNet.layers:
            if isinstance(layer, Squeeze):
                x, level = F.pixel_unshuffle(x, 2), level + 1
            elif isinstance(layer, FlowStep):
                x, log_density = self.forwards(layer, x, conditions[level], log_density)
            elif isinstance(layer, Split):
                x, taken = x[:, : layer.passed], x[:, layer.passed :]
                mean, logs = interleaved(zero_conv(layer.conv, x))
                latents.append((taken - mean) / torch.exp(logs))
                log_density = log_density + normal(mean, logs, taken)
        log_density = log_density + normal(torch.zeros_like(x), torch.zeros_like(x), x)
        return (*latents, x), -log_density / (math.log(2) * picture.shape[2] * picture.shape[3])

    def decode(self, latents: tuple[Tensor, ...], low_res: Tensor) -> Tensor:
        """The picture of latents; the density is counted too."""
        conditions = self.conditions(low_res)
        *rest, x = latents
        log_density, level = x.new_zeros(len(x)), len(conditions) - 1
        for layer in reversed(self.network.flowUpsamplerNet.layers):
            if isinstance(layer, Squeeze):
                x, level = F.pixel_shuffle(x, 2), level - 1
            elif isinstance(layer, FlowStep):
                x, log_density = self.backwards(layer, x, conditions[level], log_density)
            elif isinstance(layer, Split):
                mean, logs = interleaved(zero_conv(layer.conv, x))
                taken = mean + torch.exp(logs) * rest.pop()
                log_density = log_density - normal(mean, logs, taken)
                x = torch.cat((x, taken), dim=1)
        return x

    def conditions(self, low_res: Tensor) -> list[Tensor]:
        """Of each level, the encoder's own picture being computed on the way."""
        encoder = self.network.RRDB
        features, blocks = encoder._trunk(low_res)
        tapped = torch.cat(blocks, dim=1)
        grown = features
        sizes = [F.interpolate(features, scale_factor=0.5, mode="bilinear", recompute_scale_factor=False), features]
        for number in range(1, encoder.doublings + 1):
            grown = encoder._grown(grown, number)
            sizes.append(grown)
        encoder.conv_last(activate(encoder.conv_hr(grown)))
        return [torch.cat((own, F.interpolate(tapped, own.shape[-2:], mode="nearest")), dim=1) for own in sizes[-2::-1]]

    def forwards(self, step: FlowStep, x: Tensor, condition: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        x, log_density = normalised(step.actnorm, x), log_density + self.linear(step, x)
        x = F.conv2d(x, step.invconv.weight[..., None, None])
        if step.affine is None:
            return x, log_density
        shift, scale = affine(step.affine, step.affine.fFeatures, condition)
        x = (x + shift) * scale
        kept, changed = x[:, : step.affine.kept], x[:, step.affine.kept :]
        own_shift, own_scale = affine(step.affine, step.affine.fAffine, torch.cat((kept, condition), dim=1))
        log_density = log_density + scale.log().sum((1, 2, 3)) + own_scale.log().sum((1, 2, 3))
        return torch.cat((kept, (changed + own_shift) * own_scale), dim=1), log_density

    def backwards(self, step: FlowStep, x: Tensor, condition: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of a step."""
        if step.affine is not None:
            kept, changed = x[:, : step.affine.kept], x[:, step.affine.kept :]
            own_shift, own_scale = affine(step.affine, step.affine.fAffine, torch.cat((kept, condition), dim=1))
            x = torch.cat((kept, changed / own_scale - own_shift), dim=1)
            shift, scale = affine(step.affine, step.affine.fFeatures, condition)
            x = x / scale - shift
            log_density = log_density - scale.log().sum((1, 2, 3)) - own_scale.log().sum((1, 2, 3))
        inverse = torch.linalg.inv(step.invconv.weight.double()).to(x.dtype)
        x = F.conv2d(x, inverse[..., None, None])
        return x * torch.exp(-step.actnorm.logs) - step.actnorm.bias, log_density - self.linear(step, x)

    def linear(self, step: FlowStep, x: Tensor) -> Tensor:
        """Log-determinant of normalisation and 1x1 convolution."""
        return (step.actnorm.logs.sum() + torch.linalg.slogdet(step.invconv.weight)[1]) * x.shape[2] * x.shape[3]


def normalised(norm: ActNorm, x: Tensor) -> Tensor:
    return (x + norm.bias) * torch.exp(norm.logs)


def affine(owner: ConditionalAffine, subnet: Subnet, seen: Tensor) -> tuple[Tensor, Tensor]:
    first, second = subnet[0], subnet[2]
    made = F.relu(normalised(first.actnorm, F.conv2d(seen, first.weight, padding=1)))
    made = F.relu(normalised(second.actnorm, F.conv2d(made, second.weight)))
    shift, scale = interleaved(zero_conv(subnet[4], made))
    return shift, torch.sigmoid(scale + 2.0) + owner.eps


def zero_conv(conv: ZeroConv, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=1) * torch.exp(conv.logs * 3)


def interleaved(made: Tensor) -> tuple[Tensor, Tensor]:
    return made[:, 0::2], made[:, 1::2]


def normal(mean: Tensor, logs: Tensor, x: Tensor) -> Tensor:
    return (-0.5 * (logs * 2 + (x - mean) ** 2 / torch.exp(logs * 2) + math.log(2 * math.pi))).sum((1, 2, 3))


def training(network: SRFlow, encode: Callable[..., tuple[Tensor, ...]], data: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """A step of Adam."""
    optimizer = torch.optim.Adam((weight for weight in network.parameters() if weight.requires_grad), LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        encode(*data)[1].mean().backward()
        optimizer.step()

    return step


def compare(ours: SRFlow, rival: Published, data: tuple[Tensor, Tensor]) -> None:
    """Latents, likelihoods, gradients and pictures of the same weights."""
    latents, bits, _ = ours.encode(*data)
    expected, expected_bits = rival.encode(*data)
    close(bits, expected_bits)
    for one, other in zip(latents, expected, strict=True):
        close(one, other)
    bits.mean().backward()
    expected_bits.mean().backward()
    others = dict(rival.network.named_parameters())
    for name, weight in ours.named_parameters():
        assert (weight.grad is None) == (others[name].grad is None), name
        if weight.grad is not None:
            close(weight.grad, others[name].grad)
    with torch.no_grad():
        drawn = ours.draw(data[1], HEAT)
        close(ours.decode(drawn, data[1]), rival.decode(drawn, data[1]))


def close(mine: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"rounds": 7, "steps": 4, "blocks": 6, "patch": 160, "batch": 1, "pictures": 8, "threads": 1}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours = build(options)
    data = pictures(options)
    exact = copy.deepcopy(ours).double()  # in float32 gradients differ where rounding takes an activation over its kink
    compare(exact, Published(copy.deepcopy(exact)), (data[0].double(), data[1].double()))
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for name, joint in (("frozen", False), ("joint", True)):
        mine, other = copy.deepcopy(ours), copy.deepcopy(ours)
        for network in (mine, other):
            network.zero_grad()
            if not joint:
                network.RRDB.requires_grad_(False)
        ways[name] = (training(mine, mine.encode, data), training(other, Published(other).encode, data))
    one, low_res = Published(ours), data[1]
    drawn = ours.draw(low_res, HEAT)
    ways["one"] = (lambda: ours.decode(drawn, low_res), lambda: one.decode(drawn, low_res))
    single, repeated = low_res[:1], low_res[:1].expand(options.pictures, -1, -1, -1)
    many = ours.draw(repeated, HEAT)
    ways["many"] = (lambda: ours.decode(many, single), lambda: one.decode(many, repeated))
    with torch.no_grad():
        for name in ("one", "many"):
            close(*(way() for way in ways[name]))
    line: dict[str, float] = {}
    for name, (mine, other) in ways.items():
        with torch.set_grad_enabled(name in ("frozen", "joint")):
            times = [(timed(mine), timed(other)) for _ in range(options.rounds + 1)][1:]
        line |= {f"{name}_ms": round(statistics.median(a for a, _ in times), 1)}
        line |= {f"{name}_published_ms": round(statistics.median(b for _, b in times), 1)}
        line |= {f"{name}_ratio": round(statistics.median(b / a for a, b in times), 2)}
    print(json.dumps(line))


def timed(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return (time.process_time() - start) * 1000


if __name__ == "__main__":
    main()
