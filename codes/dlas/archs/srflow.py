"""SRFlow: super-resolution as a conditional normalising flow.

Lugmayr et al., "SRFlow: Learning the Super-Resolution Space with Normalizing Flow", ECCV 2020 (arXiv:2006.14200). The
published checkpoints (``SRFlow_DF2K_4X``, ``SRFlow_DF2K_8X``, ``SRFlow_CelebA_8X``) load: the flow has their names, the encoder
those that RRDBNet has now.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.layers.classifiers.files import load_exactly
from dlas.layers.flow import ConditionalAffine, FlowStep, Split, Squeeze, standard_normal_log_density
from dlas.layers.flow_level import Condition, Level, Memory
from dlas.layers.recompute import recompute
from dlas.layers.rrdb import RRDB, activate, present_name
from dlas.registry import ARCHS
from dlas.types import FlowOptions, Fraction, PositiveFloat, PositiveInt

Latents = tuple[Tensor, ...]
"""What the splits took away, finest level first, and the coarsest level: standard normal, each with as many samples."""

UNUSED_CHANNELS = 96
"""Of a convolution that the published checkpoints hold and no published program runs."""


@dataclass(frozen=True)
class FlowShape:
    """What the option `flow` says, whose keys are those of SRFlow's and DL-Art-School's files.

    Args:
        levels: times that the picture's sides are halved (`L`); without it, log2 of the enlargement, and one.
        transitions: steps without affine maps at the beginning of each level (`additionalFlowNoAffine`).
        split: whether channels are taken away between levels (`split.enable`).
        split_share: how many of them (`split.consume_ratio`).
        split_before_last: also before the last level (`split.correct_splits`), which the published networks leave out.
        blocks: of which RRDBs, counted from 0, the results are part of the condition (`stackRRDB.blocks`).
        hidden_channels: width of the networks within affine maps (`CondAffineSeparatedAndCond.hidden_channels`).
        eps: least scale of an affine map (`CondAffineSeparatedAndCond.eps`).
        lu: see `InvertibleConv`; SRFlow's own option.
    """

    levels: int | None = None
    transitions: int = 2
    split: bool = True
    split_share: float = 0.5
    split_before_last: bool = False
    blocks: Sequence[int] = (1, 8, 15, 22)
    hidden_channels: int = 64
    eps: float = 1e-4
    lu: bool = False

    @staticmethod
    def of(options: Mapping[str, Any], steps: int) -> FlowShape:
        """Reads the option.

        Args:
            options: as in the file.
            steps: the option `K`, which may be repeated here.

        Raises:
            ValueError: a key is unknown, or asks for another kind of flow than SRFlow's.
        """
        given: dict[str, Any] = {}
        for key, value in _flattened(options):
            if value is None:
                continue
            if key in _FIELD_OF_KEY:
                given[_FIELD_OF_KEY[key]] = value
            elif key in _ONE_VALUE or key == "K":
                only = steps if key == "K" else _ONE_VALUE[key]
                if value != only:
                    raise ValueError(f"flow.{key} must be {only!r}, got {value!r}; leave it out")
            elif key not in _WITHOUT_EFFECT:
                known = sorted({*_FIELD_OF_KEY, *_ONE_VALUE, *_WITHOUT_EFFECT, "K"})
                raise ValueError(f"flow.{key} is unknown; the keys of 'flow' are {', '.join(known)}")
        assert given.keys() <= {field.name for field in fields(FlowShape)}
        return FlowShape(**given)


_FIELD_OF_KEY = {
    "L": "levels",
    "additionalFlowNoAffine": "transitions",
    "split.enable": "split",
    "split.consume_ratio": "split_share",
    "split.correct_splits": "split_before_last",
    "stackRRDB.blocks": "blocks",
    "CondAffineSeparatedAndCond.hidden_channels": "hidden_channels",
    "CondAffineSeparatedAndCond.eps": "eps",
}

_ONE_VALUE = {
    "coupling": "CondAffineSeparatedAndCond",
    "flow_permutation": "invconv",
    "split.type": "Split2d",
    "split.logs_eps": 0,
    "stackRRDB.concat": True,
    "fea_up0": True,
    "gaussian_loss_weight": 1,
}
"""Keys of the published files of which one value is built."""

_WITHOUT_EFFECT = ("noInitialInj", "patch_size", "fea_up-1")
"""Keys of the published files that nothing read, or that follow from the others."""


def _flattened(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class ConditionEncoder(nn.Module):
    """RRDBNet whose features at several sizes are the flow's condition; its long skip starts behind the trunk.

    Args:
        in_nc: channels of a low-resolution picture.
        out_nc: channels of a high-resolution one.
        nf: width.
        nb: blocks.
        gc: channels that each convolution of a dense block adds.
        doublings: log2 of how much larger the result is than the features of the trunk.
        stride: of the first convolution.
        taps: blocks whose results are part of every condition.
    """

    def __init__(
        self, in_nc: int, out_nc: int, nf: int, nb: int, gc: int, doublings: int, stride: int, taps: Sequence[int]
    ) -> None:
        super().__init__()
        side = 7 if stride > 1 else 3
        self.checkpointing = False
        self.taps = frozenset(taps)
        self.conv_first = nn.Conv2d(in_nc, nf, side, stride, padding=side // 2)
        self.body = nn.ModuleList(RRDB(nf, gc) for _ in range(nb))
        self.conv_body = nn.Conv2d(nf, nf, 3, padding=1)
        for number in range(1, doublings + 1):
            self.add_module(f"conv_up{number}", nn.Conv2d(nf, nf, 3, padding=1))
        self.conv_hr = nn.Conv2d(nf, nf, 3, padding=1)
        self.conv_last = nn.Conv2d(nf, out_nc, 3, padding=1)
        self.doublings = doublings
        # They make the encoder's own picture, not the condition: no likelihood has a gradient for them.
        for unused in (self._enlargement(doublings), self.conv_hr, self.conv_last):
            unused.requires_grad_(False)

    def conditions(self, low_res: Tensor, levels: int) -> list[Condition]:
        """Conditions of each level: (B, in_nc, h, w) -> (B, nf (taps + 1), H / 2^l, W / 2^l) for l = 1 .. levels.

        What is only enlarged in them is kept small.
        """
        features, blocks = self._trunk(low_res)
        tapped = torch.cat(blocks, dim=1)
        sizes = [features]
        for power in range(1, self.doublings):
            sizes.append(self._grown(sizes[-1], power))  # activated: the authors' activation works in place
        conditions = []
        for power in range(self.doublings - 1, self.doublings - 1 - levels, -1):
            own = sizes[power] if power >= 0 else _shrunk(features, 2**-power)
            condition = Condition(own, tapped)
            conditions.append(condition if power > 0 else Condition(condition.whole()))
        return conditions

    def picture(self, low_res: Tensor) -> Tensor:
        """The encoder's own high-resolution picture: (B, in_nc, h, w) -> (B, out_nc, H, W)."""
        features, _ = self._trunk(low_res)
        for power in range(1, self.doublings + 1):
            features = self._grown(features, power)
        return self.conv_last(activate(self.conv_hr(features)))

    def _trunk(self, low_res: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.conv_first(low_res)
        tapped = []
        for number, block in enumerate(self.body):
            features = recompute(block, features, when=self.checkpointing and self.training)
            if number in self.taps:
                tapped.append(features)
        return features + self.conv_body(features), tapped

    def _grown(self, features: Tensor, number: int) -> Tensor:
        return activate(self._enlargement(number)(F.interpolate(features, scale_factor=2.0, mode="nearest")))

    def _enlargement(self, number: int) -> nn.Module:
        return self.get_submodule(f"conv_up{number}")


def _shrunk(features: Tensor, factor: int) -> Tensor:
    size = (features.shape[-2] // factor, features.shape[-1] // factor)
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


class ConditionalFlow(nn.Module):
    """Levels of squeeze, transition steps, steps and split, in one list as in the published checkpoints.

    Args:
        channels: of a picture.
        condition_channels: of a condition.
        steps: with affine maps, a level.
        levels: number of levels.
        shape: the rest.
        rebuild: the steps' activations in the backward pass from their results.
    """

    def __init__(
        self, channels: int, condition_channels: int, steps: int, levels: int, shape: FlowShape, rebuild: bool = False
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.rebuild = rebuild
        self.layers = nn.ModuleList()
        self._levels: list[Level] = []
        for level in range(1, levels + 1):
            channels *= 4
            self.layers.append(Squeeze())
            together = [FlowStep(channels, None, shape.lu) for _ in range(shape.transitions)]
            for _ in range(steps):
                affine = ConditionalAffine(channels, condition_channels, shape.hidden_channels, shape.eps)
                together.append(FlowStep(channels, affine, shape.lu))
            self.layers.extend(together)
            self._levels.append(Level(together))
            if shape.split and level < levels - (not shape.split_before_last):
                taken = round(channels * shape.split_share)
                self.layers.append(Split(channels, taken))
                channels -= taken
        # In the published checkpoints, and part of nothing.
        self.f = nn.Sequential(nn.Conv2d(condition_channels, UNUSED_CHANNELS, 3, padding=1)).requires_grad_(False)

    def encode(self, x: Tensor, conditions: Sequence[Condition]) -> tuple[Latents, Tensor]:
        """(B, C, H, W) and the conditions of each level -> latents, and (B,): ln p(x) without the last latent's part."""
        log_density = x.new_zeros(len(x))
        latents: list[Tensor] = []
        ahead = zip(self._levels, conditions, strict=True)
        memory: Memory = "invert" if self.rebuild else "recompute" if self.checkpointing and self.training else "keep"
        for layer in self.layers:
            if isinstance(layer, Split):
                x, latent, more = layer.encode(x)
                latents.append(latent)
                log_density = log_density + more
            elif isinstance(layer, Squeeze):
                level, condition = next(ahead)
                x, more = level.encode(layer.encode(x), condition, memory)
                log_density = log_density + more
        return (*latents, x), log_density

    def decode(self, latents: Sequence[Tensor], conditions: Sequence[Condition]) -> Tensor:
        """The inverse of `encode`. With n times as many latents as conditions, n in a row belong to one condition."""
        *remaining, x = latents
        back = zip(reversed(self._levels), reversed(conditions), strict=True)
        for layer in reversed(self.layers):
            if isinstance(layer, Split):
                x = layer.decode(x, remaining.pop())
            elif isinstance(layer, Squeeze):
                level, condition = next(back)
                x = layer.decode(level.decode(x, condition))
        return x

    def latent_sizes(self, channels: int, height: int, width: int) -> list[tuple[int, int, int]]:
        """Channels, height and width of each latent of a picture of such a size."""
        sizes = []
        for layer in self.layers:
            if isinstance(layer, Squeeze):
                channels, height, width = channels * 4, height // 2, width // 2
            elif isinstance(layer, Split):
                sizes.append((layer.taken, height, width))
                channels = layer.passed
        return [*sizes, (channels, height, width)]


def _laid_out(x: Tensor) -> Tensor:
    """As convolutions take it without reordering: on the CPU a pixel's channels side by side."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


@ARCHS.register("srflow", "SRFlowNet")
class SRFlow(nn.Module):
    """Learns the likelihood of high-resolution pictures given a low-resolution one, and draws from it.

    Train it with the loss `direct` of `nll`: `{type: generator, generator: flow, in: [hq, lq], out: [latents, nll]}`. Pictures
    are drawn by `{type: generator, generator: flow, method: sample, in: lq, args: {heat: 0.9}, out: gen, grad: false}`.

    The paper trains the flow over a frozen encoder that was trained before, and both from half of the iterations on; it adds
    uniform noise of one step of the pictures' values. What the authors published was trained without this noise
    (`dequantise: false`) and with the encoder from the beginning (`train_RRDB: true`).

    Args:
        in_nc: channels of low-resolution pictures.
        out_nc: channels of high-resolution ones.
        nf: width of the encoder.
        nb: its residual-in-residual blocks: 23, or 8 for SRFlow_CelebA_8X.
        gc: channels that each convolution of its dense blocks adds.
        K: steps with affine maps in each level of the flow.
        scale: enlargement, 4 or 8; 2 with an `initial_stride` of 2 or more.
        initial_stride: stride of the encoder's first convolution, 7x7 where this is above 1.
        flow_scale: `scale` times `initial_stride`, which it is without being said.
        flow: the flow's shape: `L`, `additionalFlowNoAffine`, `split: {enable, consume_ratio, correct_splits}`, `stackRRDB:
            {blocks}`, `CondAffineSeparatedAndCond: {hidden_channels, eps}`; without it, that of SRFlow_DF2K_4X. The networks
            for 8X have `stackRRDB: {blocks: [1, 3, 5, 7]}`.
        train_RRDB: train the encoder, too, from the beginning; false: never, or after `train_RRDB_delay` if that is given;
            without it after `train_RRDB_delay`.
        train_RRDB_delay: share of the run's iterations for which the encoder is frozen; 0.5, as in the paper, without it.
        pretrain_rrdb: file of the encoder's weights, an RRDBNet trained with `long_skip: trunk`.
        dequantise: in training, add uniform noise as wide as the step between two values of a pixel, so that densities of whole
            numbers are finite.
        quant: steps of a pixel's value from 0 to 1: 255, or 32 in the published files.
        lu: learn the flow's 1x1 convolutions as P L (U + diag(s)), whose determinant is that of s; weights with and without it
            load into each other.
        rebuild: rebuild the activations of the flow's steps from their results in the backward pass: memory does not grow with
            `K`, and a training step takes longer.

    Raises:
        ValueError: the options do not go together.
        CheckpointError: `pretrain_rrdb` cannot be read or is of another network.
    """

    needs_first_batch = True

    def __init__(
        self,
        *,
        in_nc: PositiveInt = 3,
        out_nc: PositiveInt = 3,
        nf: PositiveInt = 64,
        nb: PositiveInt = 23,
        gc: PositiveInt = 32,
        K: PositiveInt = 16,  # noqa: N803  # the name of the published files, as is the next
        scale: Literal[2, 4, 8] = 4,
        initial_stride: PositiveInt = 1,
        flow_scale: PositiveInt | None = None,
        flow: FlowOptions | None = None,
        train_RRDB: bool | None = None,  # noqa: N803
        train_RRDB_delay: Fraction | None = None,  # noqa: N803
        pretrain_rrdb: str | None = None,
        dequantise: bool = True,
        quant: PositiveFloat = 255.0,
        lu: bool = False,
        rebuild: bool = False,
    ) -> None:
        super().__init__()
        enlargement = scale * initial_stride
        if enlargement not in (4, 8, 16) or flow_scale not in (None, enlargement):
            raise ValueError(
                f"the flow enlarges by scale times initial_stride, {scale} x {initial_stride} = {enlargement}: this must be 4, "
                f"8 or 16, and flow_scale, if it is given ({flow_scale}), the same"
            )
        shape = replace(FlowShape.of(flow or {}, K), lu=lu)
        if not shape.blocks or max(shape.blocks) >= nb or min(shape.blocks) < 0:
            raise ValueError(
                f"flow.stackRRDB.blocks {list(shape.blocks)}: with nb: {nb} the blocks are 0 .. {nb - 1}; name some of these"
            )
        self.scale, self.out_nc = scale, out_nc
        self.dequantise, self.quant = dequantise, quant
        doublings = enlargement.bit_length() - 1
        self.levels = shape.levels or doublings + 1
        # The coarsest level must have whole pixels for whole features.
        self.multiple = initial_stride * 2 ** max(0, self.levels - doublings)
        self.RRDB = ConditionEncoder(in_nc, out_nc, nf, nb, gc, doublings, initial_stride, shape.blocks)
        self.flowUpsamplerNet = ConditionalFlow(out_nc, nf * (len(set(shape.blocks)) + 1), K, self.levels, shape, rebuild)
        if pretrain_rrdb is not None:
            load_exactly(self.RRDB, Path(pretrain_rrdb), "SRFlow's encoder")
        if train_RRDB and train_RRDB_delay is not None:
            raise ValueError("train_RRDB: true trains the encoder from the beginning: leave train_RRDB_delay out")
        if train_RRDB is False and train_RRDB_delay is None:
            self.RRDB.requires_grad_(False)
        delay = 0.5 if train_RRDB_delay is None else train_RRDB_delay
        self.frozen_at_first = {} if train_RRDB else {"RRDB.": delay}

    @property
    def checkpointing(self) -> bool:
        """Whether activations of the encoder's blocks and of the flow's steps are recomputed in the backward pass."""
        return self.flowUpsamplerNet.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.RRDB.checkpointing = self.flowUpsamplerNet.checkpointing = value

    def forward(
        self,
        picture: Tensor | None,
        low_res: Tensor,
        latents: Sequence[Tensor] | None = None,
        heat: float | None = None,
        reverse: bool = False,
    ) -> tuple[Latents, Tensor, Tensor] | tuple[Tensor, Latents]:
        """Encodes a picture, or, with `reverse`, makes one; the order of arguments is DL-Art-School's.

        Args:
            picture: (B, out_nc, H, W) in [0, 1], to encode.
            low_res: (B, in_nc, H / scale, W / scale) in [0, 1].
            latents: to make a picture of; without them they are drawn.
            heat: standard deviation of latents that are drawn; 1 without it.
            reverse: make a picture, without gradients.

        Returns:
            Latents; the negative log-likelihood in bits for each pixel position, (B,), of its channels together; ln p without
            the part of the last latent, (B,). With `reverse` the picture and its latents.

        Raises:
            ValueError: sizes do not go together, or there is no picture to encode.
        """
        if reverse:
            with torch.no_grad():
                latents = self.draw(low_res, 1.0 if heat is None else heat) if latents is None else tuple(latents)
                return self.decode(latents, low_res), latents
        if picture is None:
            raise ValueError("there is no picture to encode; to make one, the argument 'reverse' must be true")
        noise = torch.rand_like(picture) if self.dequantise and self.training else None
        return self.encode(picture, low_res, noise)

    def encode(self, picture: Tensor, low_res: Tensor, noise: Tensor | None = None) -> tuple[Latents, Tensor, Tensor]:
        """What `forward` returns of a picture, dequantised by `noise`, (B, out_nc, H, W) in [0, 1), if there is any."""
        expected = tuple(side * self.scale for side in low_res.shape[-2:])
        if tuple(picture.shape[-2:]) != expected:
            raise ValueError(
                f"a picture of {picture.shape[-2]}x{picture.shape[-1]} pixels does not go with a low-resolution one of "
                f"{low_res.shape[-2]}x{low_res.shape[-1]} at scale {self.scale}: it must have {expected[0]}x{expected[1]}"
            )
        conditions = self._conditions(low_res)
        pixels = picture.shape[-2] * picture.shape[-1]
        with torch.autocast(picture.device.type, enabled=False):  # determinants and inverses are not to be rounded
            x = _laid_out(picture.to(conditions[0].fine.dtype))
            if noise is not None:
                x = x + (noise - 0.5) / self.quant
            latents, log_density = self.flowUpsamplerNet.encode(x, conditions)
            if noise is not None:
                log_density = log_density - math.log(self.quant) * pixels
            nll = -(log_density + standard_normal_log_density(latents[-1])) / (math.log(2) * pixels)
        return latents, nll, log_density

    def decode(self, latents: Sequence[Tensor], low_res: Tensor) -> Tensor:
        """The picture of latents, (B, out_nc, H, W), not clamped: the inverse of `encode`."""
        conditions = self._conditions(low_res)
        with torch.autocast(low_res.device.type, enabled=False):
            return self.flowUpsamplerNet.decode([_laid_out(each) for each in latents], conditions)

    def sample(self, low_res: Tensor, heat: float = 0.9) -> Tensor:
        """A picture for each low-resolution one, drawn with latents of standard deviation `heat`; at 0 always the same."""
        return self.decode(self.draw(low_res, heat), low_res)

    def draw(self, low_res: Tensor, heat: float) -> Latents:
        """Normally distributed latents of standard deviation `heat` for pictures (B, in_nc, h, w)."""
        dtype = torch.promote_types(low_res.dtype, torch.float32)
        return tuple(
            heat * torch.randn(len(low_res), *size, device=low_res.device, dtype=dtype) for size in self.latent_sizes(low_res)
        )

    def latent_sizes(self, low_res: Tensor) -> list[tuple[int, int, int]]:
        """Channels, height and width of each latent of a picture that belongs to (B, in_nc, h, w)."""
        height, width = (side * self.scale for side in low_res.shape[-2:])
        return self.flowUpsamplerNet.latent_sizes(self.out_nc, height, width)

    def _conditions(self, low_res: Tensor) -> list[Condition]:
        height, width = low_res.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"a low-resolution picture of {height}x{width} pixels does not fit: height and width must be multiples of "
                f"{self.multiple}; crop or pad it"
            )
        conditions = self.RRDB.conditions(_laid_out(low_res), self.levels)
        return [each.to(torch.promote_types(each.fine.dtype, torch.float32)) for each in conditions]

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the encoder's layers in published checkpoints the names that RRDBNet has now."""
        encoder = "RRDB."
        return {
            encoder + present_name(key.removeprefix(encoder)) if key.startswith(encoder) else key: value
            for key, value in state_dict.items()
        }

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        flow = {
            "stackRRDB": {"blocks": [0, 1]},
            "CondAffineSeparatedAndCond": {"hidden_channels": 4},
            "additionalFlowNoAffine": 1,
        }
        options = {"nf": 4, "nb": 2, "gc": 4, "K": 1, "scale": 4, "train_RRDB": True, "flow": flow}
        return options, (torch.rand(2, 3, 16, 24), torch.rand(2, 3, 4, 6))
